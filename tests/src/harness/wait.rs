//! Waiting for a condition with a deadline that names what did not happen. No test sleeps for its own sake.

use std::time::{Duration, Instant};

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Looks until `look` gives a value; panics with `what` after `within`.
pub async fn eventually<T>(what: &str, within: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = look().await {
            return value;
        }
        assert!(begun.elapsed() < within, "within {within:?} this did not happen: {what}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Panics with `what` as soon as `look` is false once within `period`.
pub async fn holds(what: &str, period: Duration, mut look: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while begun.elapsed() < period {
        assert!(look().await, "after {:?} this no longer held: {what}", begun.elapsed());
        tokio::time::sleep(LOOK).await;
    }
}
