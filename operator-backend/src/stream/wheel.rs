//! The one timer of a shard: who is due for a heartbeat, in slots around one interval.
//!
//! Each stream sits in a random slot, so that heartbeats never come in one burst, however the streams came.

use std::time::{Duration, Instant};

/// Slots around the interval: 59 ms apart at 15 s.
const SLOTS: usize = 256;
const LAST_SLOT: u32 = 255;

/// Where a stream sits.
#[derive(Clone, Copy, Default)]
pub(super) struct Seat {
    slot: u16,
    place: u32,
}

pub(super) struct Wheel {
    slots: Vec<Vec<u32>>,
    width: Duration,
    /// Slot that is due next, and when.
    next: usize,
    due: Instant,
    seated: usize,
}

impl Wheel {
    pub(super) fn new(interval: Duration, now: Instant) -> Self {
        let width = interval / u32::try_from(SLOTS).unwrap_or(1);
        Self { slots: vec![Vec::new(); SLOTS], width, next: 0, due: now + width, seated: 0 }
    }

    /// Seats a stream in a random slot.
    pub(super) fn sit(&mut self, token: u32) -> Seat {
        let slot = rand::random_range(0..SLOTS);
        let Some(list) = self.slots.get_mut(slot) else {
            return Seat::default();
        };
        list.push(token);
        self.seated += 1;
        Seat { slot: u16::try_from(slot).unwrap_or(0), place: u32::try_from(list.len() - 1).unwrap_or(0) }
    }

    /// Takes a stream out; gives the one that took its place in the slot, whose seat is now this one.
    pub(super) fn leave(&mut self, seat: Seat) -> Option<u32> {
        let list = self.slots.get_mut(usize::from(seat.slot))?;
        let place = seat.place as usize;
        if place < list.len() {
            list.swap_remove(place);
            self.seated -= 1;
        }
        list.get(place).copied()
    }

    /// When the next slot with anybody in it is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        if self.seated == 0 {
            return None;
        }
        let ahead =
            self.slots.iter().cycle().skip(self.next).take(SLOTS).position(|slot| !slot.is_empty())?;
        Some(self.due + self.width * u32::try_from(ahead).unwrap_or(0))
    }

    /// Everybody whose slot is due by `now`, slot by slot until that is at least `most`; the others stay due. After
    /// a pause longer than the interval each is due once.
    pub(super) fn turn(&mut self, now: Instant, most: usize, mut due: impl FnMut(u32)) {
        if let Some(oldest) = now.checked_sub(self.width * LAST_SLOT)
            && self.due < oldest
        {
            self.due = oldest;
        }
        let mut given = 0;
        while self.due <= now && given < most {
            let slot = self.slots.get(self.next).map(Vec::as_slice).unwrap_or_default();
            given += slot.len();
            for number in slot {
                due(*number);
            }
            self.next = (self.next + 1) % SLOTS;
            self.due += self.width;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_stream_is_due_once_an_interval_and_not_all_at_once() {
        let (start, interval) = (Instant::now(), Duration::from_secs(15));
        let mut wheel = Wheel::new(interval, start);
        assert_eq!(wheel.next_due(), None);
        (0..1000).for_each(|token| {
            wheel.sit(token);
        });
        let (mut counts, mut largest) = (vec![0; 1000], 0);
        for step in 1..=2560_u32 {
            let mut burst = 0;
            wheel.turn(start + interval * step / 256, usize::MAX, |token| {
                counts[token as usize] += 1;
                burst += 1;
            });
            largest = largest.max(burst);
        }
        assert!(counts.iter().all(|count| *count == 10), "{counts:?}");
        assert!(largest < 50, "{largest} of 1000 at once");
    }

    #[test]
    fn after_a_long_pause_each_is_due_once() {
        let start = Instant::now();
        let mut wheel = Wheel::new(Duration::from_secs(1), start);
        wheel.sit(7);
        let mut due = 0;
        wheel.turn(start + Duration::from_hours(1), usize::MAX, |_| due += 1);
        assert_eq!(due, 1);
    }

    #[test]
    fn who_is_not_given_in_one_turn_is_due_in_the_next() {
        let (start, interval) = (Instant::now(), Duration::from_secs(1));
        let mut wheel = Wheel::new(interval, start);
        (0..1000).for_each(|number| {
            wheel.sit(number);
        });
        let (now, mut given) = (start + interval, Vec::new());
        while wheel.next_due().is_some_and(|due| due <= now) {
            let before = given.len();
            wheel.turn(now, 10, |number| given.push(number));
            assert!((1..100).contains(&(given.len() - before)), "{} at once", given.len() - before);
        }
        given.sort_unstable();
        assert_eq!(given, (0..1000).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn who_has_left_is_never_due(leaving in prop::collection::vec(any::<bool>(), 1..300)) {
            let start = Instant::now();
            let mut wheel = Wheel::new(Duration::from_secs(1), start);
            let mut seats: Vec<Seat> = (0..leaving.len()).map(|token| wheel.sit(u32::try_from(token).unwrap())).collect();
            for (token, leaves) in leaving.iter().enumerate() {
                if *leaves {
                    let seat = seats[token];
                    if let Some(moved) = wheel.leave(seat) {
                        seats[moved as usize] = seat;
                    }
                }
            }
            let mut due = Vec::new();
            wheel.turn(start + Duration::from_secs(1), usize::MAX, |token| due.push(token as usize));
            due.sort_unstable();
            let stayed: Vec<usize> = (0..leaving.len()).filter(|token| !leaving[*token]).collect();
            prop_assert_eq!(due, stayed);
        }
    }
}
