//! Any body of a publish request: no panic, and what is accepted stays on its lines of the stream.
#![no_main]

use operator_backend::events::{EntryId, Epoch, Event, NewEvent};

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    let Ok(new) = NewEvent::parse(body) else { return };
    let event = Event::new(EntryId::default(), Epoch(1), 1, new);
    let lines: Vec<&str> = event.text().split('\n').collect();
    let expected = if event.name().is_some() { 4 } else { 3 };
    assert_eq!(lines.len(), expected);
    assert!(!event.text().contains('\r'));
    assert!(event.text().ends_with(&format!("data: {}\n\n", event.data())));
});
