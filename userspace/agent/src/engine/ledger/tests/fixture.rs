//! Committed ledgers, one of each format: what an earlier build wrote is read, or refused by name, and a change of the format is noticed.
//!
//! To write the one of today's format, anew if what is observed in it has changed:
//!
//! ```text
//! KWITNESS_WRITE_LEDGER=1 cargo test -p kwitness-agent --lib the_format_is_that_of_the_committed_ledger
//! ```

use std::collections::BTreeSet;
use std::env;

use kwitness_api::proto;
use kwitness_core::model::ContainerId;
use serde_json::Value;

use super::*;
use crate::reported::LimitReport;

/// The epoch goes on after so many events.
const EVENTS: u64 = 33;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ledger")
}

/// A recording of the core's.
fn observations(recording: &str) -> Vec<Observation> {
    let path = format!("{}/../core/tests/fixtures/{recording}.jsonl", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The same on every machine, and of no account to the clock of this one.
fn clock() -> Clock {
    let step = serde_json::json!({"from": 0, "offset": 1_700_000_000_000_000_000_u64});
    serde_json::from_value(serde_json::json!({"now": 3_000_000_000_u64, "step": step})).unwrap()
}

fn publish(daemon: &mut Daemon) {
    let seq = daemon.writer.position().seq + daemon.output.events.len() as u64;
    assert!(daemon.ledger.publish(seq, clock()));
    daemon.writer.append(daemon.output.events.drain(..), clock());
}

/// What today's code writes: a base, and an entry of each kind.
fn written() -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let place = Place { bytes: SEGMENT, ..place(directory.path()) };
    let mut daemon = Daemon::begin(&place);
    observations("runc-pod").into_iter().for_each(|of| daemon.observe(of));
    let (at, from, to) = (KernelTime(3), KernelTime(1), KernelTime(2));
    daemon.observe(Observation::RequestsMissed {
        at,
        container: Some(ContainerId("c".into())),
        from,
        to,
        count: 1,
    });
    daemon.output.actions.drain(..).for_each(|action| daemon.memory.asked.note(&action));
    publish(&mut daemon);
    let memory = daemon.memory.borrowed();
    daemon.ledger = place.clone().begin(daemon.writer.position(), &memory, &daemon.writer).unwrap();

    let ledger = &mut daemon.ledger;
    let id = ContainerId("c".into());
    let resources = proto::CriResources { memory_limit_in_bytes: 64 << 20, ..Default::default() };
    let request = proto::CriRequest {
        method: proto::CriMethod::UpdateContainerResources.into(),
        id: "c".into(),
        received: 1,
        answered: 2,
        code: Some(0),
        resources: Some(resources),
    };
    assert!(ledger.report(&LimitReport::Requested(request)));
    let at = KernelTime(3);
    assert!(ledger.report(&LimitReport::GuardSets { container: id, at, bytes: 96 << 20 }));
    let mut record = vec![0; RecordKind::CgroupPopulated.record_size()];
    record[16..18].copy_from_slice(&(RecordKind::CgroupPopulated as u16).to_ne_bytes());
    assert!(ledger.record(&record) && ledger.double(&record) && ledger.release(KernelTime(9)));
    let observations = vec![loss(2_100_000_000)];
    let seen = Seen::all(Counters::default(), [("task_exit", 2)].into(), [(7, 3)].into());
    assert!(ledger.account(&Accounted { observations, seen }) && ledger.look(KernelTime(2_200_000_000)));
    let event = Decoder::default().decode(&record).unwrap();
    for of in [Observation::Kernel(event), loss(2_100_000_000)] {
        daemon.memory.node.observe(of, &mut daemon.output);
    }
    self::observations("pressure").into_iter().for_each(|of| daemon.observe(of));
    publish(&mut daemon);
    of_boot(&fs::read(place.segment(2)).unwrap(), "a boot")
}

/// Its entries; the rest of the file does not count.
fn entries(bytes: &[u8]) -> Vec<(Tag, &[u8])> {
    let (mut entries, mut next) = (Vec::new(), ENTRIES);
    while let Some((tag, payload, after)) = format::entry(bytes, next) {
        entries.push((tag, payload));
        next = after;
    }
    entries
}

/// The same as if written in that boot, with no other clock's steps.
fn of_boot(bytes: &[u8], boot: &str) -> Vec<u8> {
    let mut of_boot = bytes[..ENTRIES].to_vec();
    for (tag, payload) in entries(bytes) {
        let mut payload = payload.to_vec();
        if tag == Tag::Head {
            let mut head: Value = serde_json::from_slice(&payload).unwrap();
            (head["boot"], head["clock"]) = (boot.into(), Vec::<Value>::new().into());
            payload = serde_json::to_vec(&head).unwrap();
        }
        of_boot.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_ne_bytes());
        of_boot.push(tag as u8);
        of_boot.append(&mut payload);
    }
    set_committed(&mut of_boot);
    of_boot
}

fn set_committed(bytes: &mut [u8]) {
    let committed = bytes.len() as u64;
    bytes[COMMITTED..ENTRIES].copy_from_slice(&committed.to_ne_bytes());
}

/// The tags in their order, with the names and types of what is JSON, and whatever else byte by byte.
fn form(bytes: &[u8]) -> Vec<(Tag, BTreeSet<String>)> {
    let form = |(tag, payload): (Tag, &[u8])| {
        let mut form = BTreeSet::new();
        match tag {
            Tag::Record | Tag::Double | Tag::Release | Tag::Look | Tag::Journal => {
                form.insert(payload.escape_ascii().to_string());
            }
            _ => names(&serde_json::from_slice(payload).unwrap(), "", &mut form),
        }
        (tag, form)
    };
    entries(bytes).into_iter().map(form).collect()
}

fn names(value: &Value, path: &str, form: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) if fields.is_empty() => drop(form.insert(format!("{path}: {{}}"))),
        Value::Array(items) if items.is_empty() => drop(form.insert(format!("{path}: []"))),
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| names(value, &format!("{path}.{name}"), form));
        }
        Value::Array(items) => items.iter().for_each(|item| names(item, &format!("{path}[]"), form)),
        Value::Null => drop(form.insert(format!("{path}: null"))),
        Value::Bool(_) => drop(form.insert(format!("{path}: bool"))),
        Value::Number(_) => drop(form.insert(format!("{path}: number"))),
        Value::String(_) => drop(form.insert(format!("{path}: text"))),
    }
}

/// A ledger of one segment.
fn put(place: &Place, bytes: &[u8]) {
    fs::write(place.segment(1), bytes).unwrap();
}

fn empty(directory: &Path) -> Place {
    let place = place(directory);
    drop(Daemon::begin(&place));
    place
}

fn this_boot() -> String {
    fs::read_to_string(BOOT_ID).unwrap()
}

#[test]
fn the_format_is_that_of_the_committed_ledger() {
    let (today, path) = (written(), directory().join(str::from_utf8(&MAGIC).unwrap()));
    if env::var_os("KWITNESS_WRITE_LEDGER").is_some() {
        fs::create_dir_all(directory()).unwrap();
        fs::write(&path, &today).unwrap();
    }
    let committed = fs::read(&path).expect("a ledger of today's format, written as this module says");
    let tags: BTreeSet<u8> = entries(&today).into_iter().map(|(tag, _)| tag as u8).collect();
    assert_eq!(tags, (1..=11).collect::<BTreeSet<u8>>(), "an entry of each kind");
    for (committed, today) in form(&committed).into_iter().zip(form(&today)) {
        assert_eq!(
            committed, today,
            "the format has changed: give it another version (MAGIC), keep that file as one of an earlier version, and write a new one"
        );
    }
    assert_eq!(entries(&committed).len(), entries(&today).len());
}

#[test]
fn each_committed_ledger_is_read_or_refused_by_name() {
    let place_of = tempfile::tempdir().unwrap();
    let place = empty(place_of.path());
    for file in fs::read_dir(directory()).unwrap() {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        put(&place, &of_boot(&bytes, &this_boot()));
        if !format::READABLE.iter().any(|magic| bytes.starts_with(magic)) {
            let refusal = place.read().unwrap_err();
            assert!(matches!(refusal, Refusal::OtherFormat { .. }), "{refusal}");
            continue;
        }
        let (hub, memory) = replay(&place);
        assert_eq!(hub.position(), Position { epoch: Epoch("epoch".into()), seq: EVENTS });
        assert_eq!((hub.extent().first_seq, hub.extent().events), (1, EVENTS), "those before it, too");
        assert!(memory.node.container_count() > 0 && memory.reported.requests().last("c").is_some());
        assert_eq!(memory.looked, Some(KernelTime(2_200_000_000)));
        put(&place, &of_boot(&bytes, "another boot"));
        let refusal = place.read().unwrap_err();
        assert!(matches!(refusal, Refusal::OtherBoot { .. }), "{refusal}");
    }
}

#[test]
fn a_ledger_that_is_cut_anywhere_is_refused_or_leads_to_what_it_says() {
    let place_of = tempfile::tempdir().unwrap();
    let place = empty(place_of.path());
    let whole = of_boot(&written(), &this_boot());
    for end in (0..whole.len()).step_by(whole.len() / 200) {
        let mut cut = whole[..end].to_vec();
        put(&place, &cut);
        let refusal = place.read().unwrap_err();
        assert!(matches!(refusal, Refusal::OtherFormat { .. } | Refusal::Torn { .. }), "{end}: {refusal}");
        if end < ENTRIES {
            continue;
        }
        // As if that were all that counts.
        set_committed(&mut cut);
        put(&place, &cut);
        let read = place.read().and_then(|history| {
            let history = history.expect("a segment");
            let (_, mut writer) = hub(history.position());
            history.replay(&mut writer).map(drop)
        });
        let is_named = matches!(read, Ok(()) | Err(Refusal::Torn { .. } | Refusal::Differs { .. }));
        assert!(is_named, "{end}: {read:?}");
    }
}
