//! How many streams must be closed by now, so that closing spreads evenly over a window.

use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    began: Instant,
    window: Duration,
    total: usize,
    done: usize,
}

impl Pace {
    /// `total` closings over `window`.
    pub(super) fn new(began: Instant, window: Duration, total: usize) -> Self {
        Self { began, window, total, done: 0 }
    }

    /// How many closings are due at `now`, up to `most`; they count as done.
    pub(super) fn due(&mut self, now: Instant, most: usize) -> usize {
        let elapsed = now.saturating_duration_since(self.began);
        let target = if elapsed >= self.window {
            self.total
        } else {
            let share = self.total as u128 * elapsed.as_micros() / self.window.as_micros().max(1);
            usize::try_from(share).unwrap_or(self.total)
        };
        let due = target.saturating_sub(self.done).min(most);
        self.done += due;
        due
    }

    /// When the next closing is due; `None` when all are done.
    pub(super) fn next_due(&self) -> Option<Instant> {
        if self.done >= self.total {
            return None;
        }
        let share = (self.done as u128 + 1) * self.window.as_micros() / self.total.max(1) as u128 + 1;
        Some(self.began + Duration::from_micros(u64::try_from(share).unwrap_or(u64::MAX)).min(self.window))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    fn float(number: usize) -> f64 {
        number as f64
    }

    proptest! {
        #[test]
        fn closings_are_even_complete_and_in_time(total in 1_usize..20_000, window in 1_u64..60_000) {
            let began = Instant::now();
            let window = Duration::from_millis(window);
            let mut pace = Pace::new(began, window, total);
            let (mut closed, mut steps) = (0, 0);
            while let Some(due) = pace.next_due() {
                prop_assert!(due <= began + window);
                closed += pace.due(due, usize::MAX);
                steps += 1;
                let even = float(total) * (due - began).as_secs_f64() / window.as_secs_f64();
                let rounding = 2.0 * float(total) / (window.as_secs_f64() * 1e6);
                prop_assert!((float(closed) - even).abs() <= 1.0 + rounding);
                prop_assert!(steps <= total);
            }
            prop_assert_eq!(closed, total);
        }

        #[test]
        fn closings_that_are_late_come_in_portions_at_once(total in 1_usize..2000, most in 1_usize..200) {
            let began = Instant::now();
            let mut pace = Pace::new(began, Duration::from_secs(1), total);
            let late = began + Duration::from_mins(1);
            let mut closed = 0;
            while let Some(due) = pace.next_due() {
                prop_assert!(due <= late);
                let portion = pace.due(late, most);
                prop_assert!((1..=most).contains(&portion));
                closed += portion;
            }
            prop_assert_eq!(closed, total);
        }
    }
}
