//! How much a database holds, for deciding which of two strangers' copies is the one with the data.

use rusqlite::{Connection, OptionalExtension};
use shared::api::Content;

use super::database::Database;
use super::failure::Failure;
use super::open::open_quietly;

/// Counts the rows of all user tables, up to [`Content::ROWS_COUNTED`] in each, and the bytes in use.
///
/// # Errors
/// SQLite refuses.
pub fn content(database: &Database) -> Result<Content, Failure> {
    let path = database.path();
    let handle = open_quietly(path).map_err(Failure::sqlite("open", path))?;
    count(handle.connection()).map_err(Failure::sqlite("count the rows", path))
}

fn count(connection: &Connection) -> rusqlite::Result<Content> {
    connection.execute_batch("BEGIN")?;
    let mut rows = 0;
    for table in tables(connection)? {
        let sql = format!(
            "SELECT count(*) FROM (SELECT 1 FROM main.{} LIMIT {})",
            quote(&table),
            Content::ROWS_COUNTED
        );
        // A table whose definition this build does not understand cannot be counted; it is in the bytes all the same.
        if let Ok(Some(count)) = connection
            .query_row(&sql, [], |row| row.get::<_, i64>(0))
            .optional()
        {
            rows += count.unsigned_abs();
        }
    }
    let number = |pragma| {
        let value = connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
        value.map(i64::unsigned_abs)
    };
    let pages = number("page_count")?.saturating_sub(number("freelist_count")?);
    let bytes = pages * number("page_size")?;
    connection.execute_batch("COMMIT")?;
    Ok(Content { rows, bytes })
}

/// Ordinary tables of the user's: no virtual ones, none that belong to a virtual one, none of SQLite's own.
fn tables(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut list = connection.prepare(
        "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'",
    )?;
    let names = list.query_map([], |row| row.get(0))?;
    names.collect()
}

/// `name` as an identifier in SQL.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
