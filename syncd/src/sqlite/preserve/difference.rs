//! What makes one database into another, row by row, as SQL that a person can read and run.
//!
//! Rows are told apart by their primary key, or by rowid where there is none. Nothing is kept in memory but one row. What cannot be
//! compared (virtual tables, what belongs to them, tables that this SQLite does not understand) is named in a comment, never passed over
//! in silence.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Row};

use super::literal::{is_same, write_value};
use crate::sqlite::content::quote;
use crate::sqlite::failure::Failure;

/// What a difference came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Rows that are only in the second database.
    pub inserted: u64,
    /// Rows that are in both and not the same.
    pub updated: u64,
    /// Rows that are only in the first.
    pub deleted: u64,
    /// Tables, indexes, views and triggers that were added, removed or changed.
    pub definitions: u64,
    /// Tables that could not be compared.
    pub skipped: Vec<String>,
}

impl Difference {
    /// Whether the two hold the same, as far as they could be compared.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.inserted == 0 && self.updated == 0 && self.deleted == 0 && self.definitions == 0
    }
}

/// Writes what makes the database `from` into the database `to`.
///
/// # Errors
/// SQLite or the system refuses.
pub fn difference(from: &Path, to: &Path, out: &mut dyn Write) -> Result<Difference, Failure> {
    let connection = open_both(from, to).map_err(Failure::sqlite("open", to))?;
    let mut comparison = Comparison {
        connection: &connection,
        out,
        found: Difference::default(),
    };
    match comparison.run() {
        Ok(()) => Ok(comparison.found),
        Err(Stop::Sqlite(error)) => Err(Failure::sqlite("compare", to)(error)),
        Err(Stop::Io(error)) => Err(Failure::io("write the difference of", to)(error)),
    }
}

/// The second database is `main`, the first `former`.
fn open_both(from: &Path, to: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(to, flags)?;
    connection.busy_timeout(Duration::from_secs(1))?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_WRITABLE_SCHEMA, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.execute("ATTACH ?1 AS former", [from.to_string_lossy()])?;
    connection.execute_batch("BEGIN")?;
    Ok(connection)
}

enum Stop {
    Sqlite(rusqlite::Error),
    Io(io::Error),
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

struct Comparison<'a> {
    connection: &'a Connection,
    out: &'a mut dyn Write,
    found: Difference,
}

/// An entry of a schema.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Definition {
    kind: String,
    name: String,
    sql: String,
}

/// How the rows of a table are told apart, and what they consist of.
struct Shape {
    keys: Vec<String>,
    columns: Vec<String>,
}

impl Comparison<'_> {
    fn run(&mut self) -> Result<(), Stop> {
        self.out
            .write_all(b"PRAGMA defer_foreign_keys = ON;\nBEGIN;\n")?;
        let (former, now) = (self.definitions("former")?, self.definitions("main")?);
        let kinds = self.kinds()?;
        self.remove(&former, &now, &kinds)?;
        for definition in now.values().filter(|definition| definition.kind == "table") {
            let old = former.get(&definition.name);
            match kinds.get(&definition.name).map(String::as_str) {
                Some("table") => self.table(definition, old)?,
                Some("shadow") => (),
                _ => self.skip(
                    &definition.name,
                    "a virtual table; its content is kept in the copy of the file",
                )?,
            }
        }
        for definition in now.values().filter(|definition| definition.kind != "table") {
            if former.get(&definition.name) != Some(definition) {
                self.found.definitions += 1;
                writeln!(self.out, "{};", definition.sql)?;
            }
        }
        self.out.write_all(b"COMMIT;\n")?;
        Ok(())
    }

    /// What is not there any more, or is to be made anew.
    fn remove(
        &mut self,
        former: &BTreeMap<String, Definition>,
        now: &BTreeMap<String, Definition>,
        kinds: &BTreeMap<String, String>,
    ) -> Result<(), Stop> {
        for old in former.values() {
            let is_shadow = kinds.get(&old.name).is_some_and(|kind| kind == "shadow");
            let stays = now
                .get(&old.name)
                .is_some_and(|new| new == old || (new.kind == "table" && old.kind == "table"));
            if !stays && !is_shadow {
                self.found.definitions += 1;
                writeln!(
                    self.out,
                    "DROP {} {};",
                    old.kind.to_uppercase(),
                    quote(&old.name)
                )?;
            }
        }
        Ok(())
    }

    fn definitions(&self, schema: &str) -> rusqlite::Result<BTreeMap<String, Definition>> {
        let sql = format!(
            "SELECT type, name, sql FROM {schema}.sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
        );
        let mut statement = self.connection.prepare(&sql)?;
        let found = statement.query_map([], |row| {
            Ok(Definition {
                kind: row.get(0)?,
                name: row.get(1)?,
                sql: row.get(2)?,
            })
        })?;
        found
            .map(|definition| definition.map(|definition| (definition.name.clone(), definition)))
            .collect()
    }

    /// What kind of table each is, in either database.
    fn kinds(&self) -> rusqlite::Result<BTreeMap<String, String>> {
        let mut statement = self.connection.prepare(
            "SELECT name, type FROM pragma_table_list WHERE schema IN ('main', 'former')",
        )?;
        let found = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        found.collect()
    }

    fn skip(&mut self, table: &str, why: &str) -> Result<(), Stop> {
        self.found.skipped.push(table.to_owned());
        writeln!(
            self.out,
            "-- {} was not compared: {why}.",
            one_line(&quote(table))
        )?;
        Ok(())
    }

    fn table(&mut self, table: &Definition, old: Option<&Definition>) -> Result<(), Stop> {
        let compared = match old {
            None => self.new_table(table),
            Some(old) => self.known_table(table, old),
        };
        match compared {
            Err(Stop::Sqlite(error)) => {
                let why = format!("SQLite says: {}", one_line(&error.to_string()));
                self.skip(&table.name, &why)
            }
            other => other,
        }
    }

    fn new_table(&mut self, table: &Definition) -> Result<(), Stop> {
        self.found.definitions += 1;
        writeln!(self.out, "{};", table.sql)?;
        let columns = self.columns("main", &table.name)?;
        let shape = Shape {
            keys: Vec::new(),
            columns: columns.into_iter().map(|(name, _)| name).collect(),
        };
        let sql = format!(
            "SELECT {} FROM main.{}",
            list("", &shape.columns),
            quote(&table.name)
        );
        self.insert_rows(&table.name, &shape, &sql)
    }

    fn known_table(&mut self, table: &Definition, old: &Definition) -> Result<(), Stop> {
        if table.sql != old.sql {
            self.found.definitions += 1;
            writeln!(
                self.out,
                "-- The definition of {} changed from",
                one_line(&quote(&table.name))
            )?;
            comment(self.out, &old.sql)?;
            writeln!(self.out, "-- to")?;
            comment(self.out, &table.sql)?;
            writeln!(self.out, "-- Only the columns that both have are compared.")?;
        }
        let Some(shape) = self.shape(&table.name)? else {
            return self.skip(
                &table.name,
                "it has neither a primary key nor a rowid that can be named",
            );
        };
        let name = quote(&table.name);
        let same_key = shape
            .keys
            .iter()
            .map(|key| format!("n.{0} = f.{0}", quote(key)))
            .collect::<Vec<_>>()
            .join(" AND ");
        let deleted = format!(
            "SELECT {} FROM former.{name} AS f WHERE NOT EXISTS (SELECT 1 FROM main.{name} AS n WHERE {same_key})",
            list("f.", &shape.keys)
        );
        self.delete_rows(&table.name, &shape, &deleted)?;
        let changed = format!(
            "SELECT {}, {}, {} FROM main.{name} AS n CROSS JOIN former.{name} AS f ON {same_key}",
            list("f.", &shape.keys),
            list("n.", &shape.columns),
            list("f.", &shape.columns)
        );
        self.update_rows(&table.name, &shape, &changed)?;
        let inserted = format!(
            "SELECT {} FROM main.{name} AS n WHERE NOT EXISTS (SELECT 1 FROM former.{name} AS f WHERE {same_key})",
            list("n.", &shape.columns)
        );
        self.insert_rows(&table.name, &shape, &inserted)
    }

    /// Columns that are stored, with their place in the primary key (from 1; 0: none).
    fn columns(&self, schema: &str, table: &str) -> rusqlite::Result<Vec<(String, u32)>> {
        let mut statement = self
            .connection
            .prepare("SELECT name, pk FROM pragma_table_xinfo(?1, ?2) WHERE hidden = 0")?;
        let found = statement.query_map([table, schema], |row| Ok((row.get(0)?, row.get(1)?)))?;
        found.collect()
    }

    /// How to compare a table that is in both; `None` if its rows cannot be told apart.
    fn shape(&self, table: &str) -> rusqlite::Result<Option<Shape>> {
        let (now, former) = (self.columns("main", table)?, self.columns("former", table)?);
        let common: Vec<_> = now
            .iter()
            .filter(|(name, _)| former.iter().any(|(old, _)| old == name))
            .collect();
        let mut columns: Vec<String> = common.iter().map(|(name, _)| name.clone()).collect();
        let keys_of = |columns: &[(String, u32)]| {
            let mut keys: Vec<_> = columns
                .iter()
                .filter(|(_, place)| *place > 0)
                .cloned()
                .collect();
            keys.sort_by_key(|(_, place)| *place);
            keys.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        let keys = keys_of(&now);
        if !keys.is_empty() && keys == keys_of(&former) && !self.has_null(table, &keys)? {
            return Ok(Some(Shape { keys, columns }));
        }
        let names = ["rowid", "_rowid_", "oid"].into_iter().find(|name| {
            let is_taken = |(column, _): &(String, u32)| column.eq_ignore_ascii_case(name);
            !now.iter().chain(&former).any(is_taken)
        });
        let Some(rowid) = names else {
            return Ok(None);
        };
        columns.insert(0, rowid.to_owned());
        Ok(Some(Shape {
            keys: vec![rowid.to_owned()],
            columns,
        }))
    }

    /// Whether a key has no value somewhere, which SQLite allows for historical reasons; then it does not tell rows apart.
    fn has_null(&self, table: &str, keys: &[String]) -> rusqlite::Result<bool> {
        let is_null = keys.iter().map(|key| format!("{} IS NULL", quote(key)));
        let is_null = is_null.collect::<Vec<_>>().join(" OR ");
        let name = quote(table);
        let sql = format!(
            "SELECT EXISTS (SELECT 1 FROM main.{name} WHERE {is_null}) OR EXISTS (SELECT 1 FROM former.{name} WHERE {is_null})"
        );
        self.connection.query_row(&sql, [], |row| row.get(0))
    }

    fn insert_rows(&mut self, table: &str, shape: &Shape, sql: &str) -> Result<(), Stop> {
        let mut statement = self.connection.prepare(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            self.found.inserted += 1;
            write!(
                self.out,
                "INSERT INTO {} ({}) VALUES (",
                quote(table),
                list("", &shape.columns)
            )?;
            for at in 0..shape.columns.len() {
                if at > 0 {
                    self.out.write_all(b", ")?;
                }
                write_value(self.out, row.get_ref(at)?)?;
            }
            self.out.write_all(b");\n")?;
        }
        Ok(())
    }

    fn delete_rows(&mut self, table: &str, shape: &Shape, sql: &str) -> Result<(), Stop> {
        let mut statement = self.connection.prepare(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            self.found.deleted += 1;
            write!(self.out, "DELETE FROM {}", quote(table))?;
            self.where_key(shape, row)?;
        }
        Ok(())
    }

    fn update_rows(&mut self, table: &str, shape: &Shape, sql: &str) -> Result<(), Stop> {
        let (keys, columns) = (shape.keys.len(), shape.columns.len());
        let mut statement = self.connection.prepare(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let mut changes = 0;
            for (at, column) in shape.columns.iter().enumerate() {
                let (new, old) = (row.get_ref(keys + at)?, row.get_ref(keys + columns + at)?);
                if is_same(new, old) {
                    continue;
                }
                if changes == 0 {
                    write!(self.out, "UPDATE {} SET ", quote(table))?;
                } else {
                    self.out.write_all(b", ")?;
                }
                changes += 1;
                write!(self.out, "{} = ", quote(column))?;
                write_value(self.out, new)?;
            }
            if changes > 0 {
                self.found.updated += 1;
                self.where_key(shape, row)?;
            }
        }
        Ok(())
    }

    /// Ends a statement with the key that is in front of `row`.
    fn where_key(&mut self, shape: &Shape, row: &Row<'_>) -> Result<(), Stop> {
        for (at, key) in shape.keys.iter().enumerate() {
            write!(
                self.out,
                "{}{} = ",
                if at == 0 { " WHERE " } else { " AND " },
                quote(key)
            )?;
            write_value(self.out, row.get_ref(at)?)?;
        }
        self.out.write_all(b";\n")?;
        Ok(())
    }
}

fn list(prefix: &str, columns: &[String]) -> String {
    let names = columns
        .iter()
        .map(|column| format!("{prefix}{}", quote(column)));
    names.collect::<Vec<_>>().join(", ")
}

/// What goes behind `--` must not end before its line does.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

fn comment(out: &mut dyn Write, text: &str) -> io::Result<()> {
    for line in text.split(['\n', '\r']) {
        writeln!(out, "--   {line}")?;
    }
    Ok(())
}
