use super::{super::NewEvent, *};
use proptest::prelude::*;

fn id(milliseconds: u64) -> EntryId {
    EntryId { milliseconds, sequence: 0 }
}

fn event(epoch: u32, number: u64, milliseconds: u64) -> Event {
    Event::new(id(milliseconds), Epoch(epoch), number, NewEvent::parse(br#"{"data":1}"#).unwrap())
}

fn place(epoch: u32, milliseconds: u64) -> Place {
    Place { epoch: Epoch(epoch), id: id(milliseconds) }
}

fn loaded(history: usize) -> Mirror {
    let mirror = Mirror::new(Keep { events: history, bytes: 1 << 25, milliseconds: u64::MAX });
    mirror.load(Epoch(1), id(0), 0, Vec::new());
    mirror
}

fn reason(resolved: Resolved) -> Option<GapReason> {
    match resolved {
        Resolved::Lost(gap, _) => Some(gap.reason),
        _ => None,
    }
}

#[test]
fn a_known_cursor_reads_on_behind_its_event() {
    let mirror = loaded(10);
    assert_eq!(mirror.resolve(place(1, 0)), Resolved::At(0));
    mirror.append((1..=3).map(|n| event(1, n, n * 10)).collect());
    assert_eq!(mirror.resolve(place(1, 0)), Resolved::At(0));
    assert_eq!(mirror.resolve(place(1, 20)), Resolved::At(2));
    assert_eq!(mirror.resolve(place(1, 30)), Resolved::At(3));
}

#[test]
fn a_cursor_ahead_waits_and_then_turns_out_known_or_lost() {
    let mirror = loaded(10);
    assert_eq!(mirror.resolve(place(1, 10)), Resolved::Pending);
    mirror.append(vec![event(1, 1, 10)]);
    assert_eq!(mirror.resolve(place(1, 10)), Resolved::At(1));
    assert_eq!(mirror.resolve(place(1, 15)), Resolved::Pending);
    mirror.append(vec![event(1, 2, 20)]);
    assert_eq!(reason(mirror.resolve(place(1, 15))), Some(GapReason::Lost));
}

#[test]
fn a_trimmed_cursor_is_told_and_one_at_the_edge_is_not() {
    let mirror = loaded(2);
    mirror.append((1..=4).map(|n| event(1, n, n * 10)).collect());
    assert_eq!(mirror.resolve(place(1, 20)), Resolved::At(2));
    assert_eq!(reason(mirror.resolve(place(1, 10))), Some(GapReason::Trimmed));
}

#[test]
fn a_new_epoch_is_a_gap_for_all_and_a_start_for_later_cursors() {
    let mirror = loaded(10);
    mirror.append(vec![event(1, 1, 10)]);
    mirror.begin(Epoch(2), id(5));
    mirror.append(vec![event(2, 1, 7)]);
    let (begin, items) = mirror.read(1, 10);
    assert_eq!(begin, 1);
    assert!(matches!(items.as_slice(), [Item::Gap(_), Item::Event(_)]));
    // Behind the gap is before the first event of the new epoch.
    assert_eq!(mirror.resolve(place(2, 5)), Resolved::At(2));
    assert_eq!(mirror.resolve(place(2, 7)), Resolved::At(3));
    assert_eq!(mirror.resolve(place(1, 10)), Resolved::At(1));
    // Another epoch's id is never taken for this one's.
    assert_eq!(reason(mirror.resolve(place(1, 12))), Some(GapReason::Lost));
    assert_eq!(reason(mirror.resolve(place(9, 10))), Some(GapReason::Restarted));
    mirror.follow(false);
    assert_eq!(mirror.resolve(place(9, 10)), Resolved::Pending);
}

#[test]
fn events_go_with_their_age_but_not_the_latest() {
    let keep = Keep { events: 10_000, bytes: 1 << 25, milliseconds: 1000 };
    let mirror = Mirror::new(keep);
    mirror.load(Epoch(1), id(0), 0, Vec::new());
    mirror.append((1..=300).map(|n| event(1, n, n * 10)).collect());
    // 200 events of the latest second, and the one that is exactly a second old.
    assert_eq!(mirror.read(0, 1000).0, 199);
    assert_eq!(mirror.resolve(place(1, 1990)), Resolved::At(199));
    assert_eq!(reason(mirror.resolve(place(1, 1980))), Some(GapReason::Trimmed));
    mirror.append(vec![event(1, 301, 3_600_000)]);
    assert_eq!(mirror.resolve(place(1, 3000)), Resolved::At(300));
    assert_eq!(mirror.read(0, 1000).1.len(), KEPT_ANYWAY);
}

#[test]
fn nothing_is_known_of_events_that_were_deleted_before_the_mirror_began() {
    let mirror = Mirror::new(Keep { events: 10, bytes: 1 << 25, milliseconds: u64::MAX });
    mirror.load(Epoch(1), EntryId::default(), 7, Vec::new());
    mirror.append(vec![event(1, 8, 80)]);
    assert_eq!(reason(mirror.resolve(place(1, 40))), Some(GapReason::Trimmed));
    assert_eq!(mirror.resolve(place(1, 80)), Resolved::At(1));
}

#[test]
fn a_missing_number_is_a_gap() {
    let mirror = loaded(10);
    mirror.append(vec![event(1, 1, 10), event(1, 3, 30)]);
    assert!(matches!(mirror.read(1, 1).1.as_slice(), [Item::Gap(Gap { reason: GapReason::Trimmed, .. })]));
}

proptest! {
    /// The promise: who reads on from any event it has seen, sees every later event of the log, in
    /// order, once; and where one is missing, a gap comes first.
    #[test]
    fn nothing_is_ever_missing_without_a_gap(
        history in 1_usize..12,
        steps in prop::collection::vec((0_u8..8, 1_u64..4), 1..60),
        from in 0_usize..60,
    ) {
        let mirror = loaded(history);
        let (mut epoch, mut number, mut now) = (1, 0, 0);
        // All that was ever published, and whether it reached the mirror.
        let mut published: Vec<(Place, bool)> = Vec::new();
        for (kind, count) in steps {
            match kind {
                0 => {
                    epoch += 1;
                    number = 0;
                    mirror.begin(Epoch(epoch), id(now));
                }
                1 => for _ in 0..count {
                    now += 1;
                    number += 1;
                    published.push((place(epoch, now), false));
                },
                _ => for _ in 0..count {
                    now += 1;
                    number += 1;
                    mirror.append(vec![event(epoch, number, now)]);
                    published.push((place(epoch, now), true));
                },
            }
        }
        let seen = published.iter().enumerate().filter(|(_, (_, reached))| *reached).nth(from);
        let Some((index, (cursor, _))) = seen else { return Ok(()) };
        let (mut gap, start) = match mirror.resolve(*cursor) {
            Resolved::At(position) => (false, position),
            Resolved::Lost(_, position) => (true, position),
            Resolved::Pending => return Err(TestCaseError::fail("an event that was seen is not pending")),
        };
        let mut expected = published.get(index + 1..).unwrap_or_default().iter();
        let (begin, items) = mirror.read(start, usize::MAX);
        prop_assert_eq!(begin, start);
        for item in items {
            match item {
                Item::Gap(_) => gap = true,
                Item::Event(event) => loop {
                    let (next, _) = expected.next().expect("only what was published, once, in order");
                    if next.id == event.id {
                        gap = false;
                        break;
                    }
                    prop_assert!(gap, "{} is missing without a gap", next.id);
                },
            }
        }
    }
}
