//! A running deployment meets what must not be: orders of an older epoch, damaged state files, a damaged stream, a file that is
//! no database, a full disk. Each is told clearly, nothing is lost, and it recovers by itself where it can.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::IgnoredAny;
use shared::api::{Refused, Seal};
use shared::call::{CallError, Peer};
use shared::clock;
use shared::model::{ClusterId, Epoch};

use crate::admin::Service;
use crate::mangler::Mangler;
use crate::process::{Process, tail};
use crate::scenario::reader::{Written, bank, prepared};
use crate::scenario::{Report, UP_WITHIN, WHOLE_WITHIN, millis, wrong};
use crate::stack::{Durability, Part, Shape, Side, Stack};
use crate::trouble::Trouble;
use crate::workload::Workload;

/// What state files begin with; other files are logs, whose torn ends are cut off and not refused.
const SEALED: &[u8] = b"hotwarm-state-";

/// Before the first `VACUUM` no transaction is larger than what a bad wire lets through; so many arrive in any case.
const ARRIVED_LEAST: u64 = 200;

/// Orders of an older epoch, and of another cluster, are answered with the newer epoch and change nothing.
///
/// # Errors
/// It could not be carried out.
pub async fn stale_orders() -> Result<Report, Trouble> {
    let mut report = Report::new("orders of an older epoch and of another cluster", 0);
    let stack = Stack::new(Shape::new(Durability::StandbyAck))?;
    stack.start_all()?;
    let before = stack.until_safe(UP_WITHIN).await?;
    for side in Side::BOTH {
        let status = stack.status(side).await?.report;
        let cluster = status.cluster.unwrap_or(ClusterId(0));
        let stranger = ClusterId(cluster.0 ^ 1);
        let cases = [
            ("promise", cluster, Epoch(0), Refused::StaleEpoch),
            ("fence", cluster, Epoch(0), Refused::StaleEpoch),
            (
                "promise",
                stranger,
                status.epoch.next(),
                Refused::OtherCluster,
            ),
            (
                "fence",
                stranger,
                status.epoch.next(),
                Refused::OtherCluster,
            ),
        ];
        for (verb, cluster, epoch, expected) in cases {
            let seal = Seal {
                cluster,
                epoch,
                within_ms: 100,
            };
            let answer = seal_with(&stack, side, verb, &seal).await;
            let told = match &answer {
                Err(CallError::Refused {
                    status: code,
                    refusal,
                }) => {
                    code.as_u16() == 409
                        && refusal.error == expected
                        && refusal.epoch == status.epoch
                }
                _ => false,
            };
            report.promise(told, || {
                format!("{verb} in epoch {epoch} on {side}: {answer:?}")
            });
        }
        let after = stack.status(side).await?.report;
        report.promise(
            (after.epoch, after.role, after.fenced) == (status.epoch, status.role, status.fenced),
            || format!("{side} changed from {status:?} to {after:?}"),
        );
    }
    let after = stack.until_safe(UP_WITHIN).await?;
    report.promise(before.epoch == after.epoch, || after.summary());
    report.broken.extend(wrong(&stack)?);
    Ok(report)
}

async fn seal_with(
    stack: &Stack,
    side: Side,
    verb: &str,
    seal: &Seal,
) -> Result<IgnoredAny, CallError> {
    let peer = Peer::new(&format!("http://{}", stack.syncd_door(side)), None);
    let peer = peer.map_err(|error| CallError::Broken {
        peer: side.to_string(),
        why: error.to_string(),
    })?;
    let path = format!("/v1/{verb}");
    peer.post(&path, seal, Duration::from_secs(5)).await
}

/// Every state file, with a bit flipped and cut short: refused by name, never taken for "no state"; restored, all is well.
///
/// # Errors
/// It could not be carried out.
pub async fn damaged_state() -> Result<Report, Trouble> {
    let mut report = Report::new("damaged state files", 0);
    let stack = Stack::new(Shape::new(Durability::StandbyAck))?;
    stack.start_all()?;
    stack.until_safe(UP_WITHIN).await?;
    let mut files = 0;
    for part in [Part::Proxy, Part::Syncd(Side::A), Part::Syncd(Side::B)] {
        stack.kill_for_good(&[part]);
        for path in sealed_files(&stack.state(part)) {
            let doing = || format!("damage {}", path.display());
            let whole = fs::read(&path).map_err(Trouble::system(doing()))?;
            let mut flipped = whole.clone();
            flipped[whole.len() / 2] ^= 1;
            for bytes in [&flipped[..], &whole[..whole.len() / 2], &[]] {
                fs::write(&path, bytes).map_err(Trouble::system(doing()))?;
                report.broken.extend(refused(&stack, part, &path)?);
            }
            fs::write(&path, &whole).map_err(Trouble::system(doing()))?;
            files += 1;
        }
        stack.start(part)?;
        stack.until_safe(WHOLE_WITHIN).await?;
    }
    report.count("files", files);
    report.promise(files >= 3, || "there are hardly any state files".to_owned());
    stack.until_level(WHOLE_WITHIN).await?;
    report.broken.extend(wrong(&stack)?);
    Ok(report)
}

/// Starts a part on a damaged state file; what is wrong with how it takes it.
fn refused(stack: &Stack, part: Part, path: &Path) -> Result<Vec<String>, Trouble> {
    let mut spec = stack.spec(part);
    spec.log = stack.folder().join("refusal.log");
    // Each attempt is judged by its own words.
    let _ = fs::remove_file(&spec.log);
    let log = spec.log.clone();
    let mut process = Process::new(spec);
    process.start()?;
    let status = process.wait(Duration::from_secs(5));
    process.kill();
    let said = tail(&log);
    let mut broken = Vec::new();
    if status
        .and_then(|status| status.code())
        .is_none_or(|code| code == 0)
    {
        broken.push(format!(
            "{part} started on a damaged {} ({status:?})",
            path.display()
        ));
    }
    if !said.contains(&path.display().to_string()) || !said.contains("damaged") {
        broken.push(format!(
            "{part} does not say that {} is damaged: {said}",
            path.display()
        ));
    }
    Ok(broken)
}

fn sealed_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if fs::read(&path).is_ok_and(|bytes| bytes.starts_with(SEALED)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// A stream of changes with flipped bits, missing pieces and sudden ends: noticed every time, and made good. What is whole in spite
/// of it arrives at once; a transaction that is larger than what the wire lets through arrives when the wire is healed.
///
/// # Errors
/// It could not be carried out.
pub async fn bad_wire(seed: u64, lasting: Duration) -> Result<Report, Trouble> {
    let mut report = Report::new("a damaged stream", seed);
    let shape = Shape {
        wire: Some(Side::A),
        ..Shape::new(Durability::Async)
    };
    let wire = |stack: &Stack| (stack.wire(), stack.syncd_door(Side::A));
    let stack = bank(shape, async |stack| {
        let (wire, server) = wire(stack);
        let mangler = Mangler::start(wire.port(), server, seed).await;
        mangler.map_err(Trouble::system("start the bad wire"))
    });
    let (stack, mangler) = stack.await?;
    let path = stack.database(Side::A).display().to_string();
    let args = ["write", &path, "300", "--vacuum", "3"];
    let writer = Workload::start(stack.programs(), stack.mark(), "bank.py", &args)?;
    clock::sleep(lasting).await;
    let written: Written = writer.finish()?;
    let damages = mangler.damages();
    report.count("damages", usize::try_from(damages).unwrap_or(usize::MAX));
    report.fact("transactions_per_second", written.per_second);
    report.promise(damages > 2, || "the wire was hardly used".to_owned());
    let behind = stack.status(Side::B).await?.report.applied;
    let arrived: u64 = behind.0.values().map(|position| position.seq).sum();
    report.count("arrived", usize::try_from(arrived).unwrap_or(usize::MAX));
    report.promise(arrived >= ARRIVED_LEAST, || {
        format!("only {arrived} transactions came through the bad wire")
    });
    mangler.heal();
    report.promise(written.errors.is_empty(), || {
        format!("the writer was refused: {:?}", written.errors)
    });
    stack.until_level(WHOLE_WITHIN).await?;
    report.broken.extend(wrong(&stack)?);
    Ok(report)
}

/// A file that is no database where a node's should be: said by name, and left alone. Nobody is made primary until a person decides;
/// then the service is served without that node.
///
/// # Errors
/// It could not be carried out.
pub async fn no_database() -> Result<Report, Trouble> {
    const TEXT: &str = "This is somebody's letter and not a database. It must not be lost.\n";
    let mut report = Report::new("a file that is no database", 0);
    let stack = prepared(Shape::new(Durability::Async))?;
    let theirs = stack.database(Side::B);
    fs::write(&theirs, TEXT).map_err(Trouble::system("write the letter"))?;
    stack.start_all()?;
    let complaint = format!("{} is not a SQLite database", theirs.display());
    let says = |service: &Service| service.summary().contains(&complaint);
    let names = async || {
        let unfit = stack.status(Side::B).await.ok()?.report.unfit?;
        unfit.contains(&complaint).then_some(unfit)
    };
    match stack
        .wait("syncd b naming the file", UP_WITHIN, names)
        .await
    {
        Ok(said) => report.notes.push(said),
        Err(late) => report.broken.push(late.to_string()),
    }
    // Both applications answer now, so that nothing else is waited for.
    let up = |service: &Service| service.nodes.iter().all(|node| node.health == "up");
    let heard = async || stack.service().await.ok().filter(up);
    let service = stack.wait("both nodes up", UP_WITHIN, heard).await?;
    report.promise(
        service.primary.is_none() && service.summary().contains("syncd of b"),
        || format!("nobody asked for a primary: {}", service.summary()),
    );
    let admin = format!("http://{}", stack.admin());
    let decided = "promote shop --to a --accept-data-loss --admin";
    let decided: Vec<_> = decided.split(' ').chain([admin.as_str()]).collect();
    let output = stack.run(&stack.programs().hotwarm, &decided)?;
    report.promise(output.status.success(), || {
        format!("{decided:?}: {}", String::from_utf8_lossy(&output.stderr))
    });
    let serves = |service: &Service| service.primary.as_deref() == Some(Side::A.name());
    let heard = async || stack.service().await.ok().filter(serves);
    let service = stack.wait("a serving alone", UP_WITHIN, heard).await?;
    report.promise(says(&service) && !service.is_safe(), || service.summary());
    let kept = fs::read_to_string(&theirs).unwrap_or_default();
    report.promise(kept == TEXT, || "the file was changed".to_owned());
    report.broken.extend(stack.panics());
    Ok(report)
}

/// The disk under one syncd fills up under load: said, the application is not the victim, and it recovers by itself, under the same
/// load, when there is room again. Needs root, for a small file system of its own.
///
/// # Errors
/// It could not be carried out.
pub async fn full_disk(side: Side) -> Result<Report, Trouble> {
    let mut report = Report::new(format!("a full disk under syncd {side}"), 0);
    if !rustix::process::geteuid().is_root() {
        return Err(Trouble::Missing {
            what: "the right to mount a small file system".to_owned(),
            remedy: "run this as root",
        });
    }
    let shape = Shape {
        small_disk: Some(side),
        ..Shape::new(Durability::Async)
    };
    let (stack, ()) = bank(shape, async |_| Ok(())).await?;
    let before = stack.service().await?.epoch;
    let path = stack.database(Side::A).display().to_string();
    let args = ["write", &path, "300"];
    let writer = Workload::start(stack.programs(), stack.mark(), "bank.py", &args)?;
    let ballast = fill_up(&stack, side)?;
    let says_so = async || {
        let status = stack.status(side).await.ok()?;
        let mut errors = status.sources.iter().filter_map(|it| it.error.as_ref());
        errors.find(|error| error.contains("is full")).cloned()
    };
    let within = Duration::from_secs(15);
    match stack
        .wait("the status saying that the disk is full", within, says_so)
        .await
    {
        Ok(said) => report.notes.push(said),
        Err(late) => report.broken.push(late.to_string()),
    }
    clock::sleep(Duration::from_secs(2)).await;
    fs::remove_file(&ballast).map_err(Trouble::system("remove the ballast"))?;
    let roomy = clock::now();
    let tip =
        async || Some(stack.status(Side::A).await.ok()?.report.tip).filter(|tip| !tip.0.is_empty());
    let wanted = stack
        .wait("the primary capturing again", WHOLE_WITHIN, tip)
        .await?;
    let shows = async || {
        let applied = stack.status(Side::B).await.ok()?.report.applied;
        applied.covers(&wanted).then_some(())
    };
    stack
        .wait(
            "the standby following again, under load",
            WHOLE_WITHIN,
            shows,
        )
        .await?;
    report.fact("following_again_ms", millis(clock::now() - roomy));
    let written: Written = writer.finish()?;
    report.fact("transactions_per_second", written.per_second);
    report.fact("longest_write_ms", written.wait_ms_max.unwrap_or(f64::NAN));
    report.promise(written.errors.is_empty(), || {
        format!("the writer was refused: {:?}", written.errors)
    });
    stack.until_level(WHOLE_WITHIN).await?;
    let after = stack.service().await?;
    report.promise(after.epoch == before, || after.summary());
    report.broken.extend(wrong(&stack)?);
    Ok(report)
}

/// Fills the small disk to the last byte; it can be reached through the process that sees it.
fn fill_up(stack: &Stack, side: Side) -> Result<PathBuf, Trouble> {
    let part = Part::Syncd(side);
    let group = stack.group(part).unwrap_or_default();
    let seen = format!("/proc/{group}/root{}", stack.state(part).display());
    let path = Path::new(&seen).join("ballast");
    let mut file = fs::File::create(&path).map_err(Trouble::system(format!("create {seen}")))?;
    for size in [64 << 10, 1 << 10, 1] {
        let piece = vec![0; size];
        while file.write_all(&piece).is_ok() {}
    }
    Ok(path)
}
