//! Where one stream is in the mirror, and what it has to be told next.

use bytes::Bytes;

use super::group::Group;
use crate::{
    events::{Gap, GapReason, Mirror, Place, Resolved},
    metrics::Metrics,
};

/// Items that are read from the mirror at a time.
const PAGE: usize = 256;
/// Bytes that a catching-up stream has in memory at most, but for one event.
const CHUNK: usize = 16 * 1024;

/// A position in the mirror, or the wait for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Feed {
    /// Everything before this position has been sent.
    At(u64),
    /// After this place, wherever it turns out to be.
    After(Place),
    /// At the end of the log, once it has been read for the first time.
    AtEnd,
    /// After a cursor that says nothing: a gap, then the end of the log.
    Unknown,
}

/// What a stream does next.
pub(super) enum Step {
    /// Send this, then ask again. Empty where nothing was for this stream: what is asked at once is bounded.
    Send(Bytes),
    /// Everything before the limit has been sent.
    Reached,
    /// There is nothing to say before the mirror changes.
    Wait,
}

impl Feed {
    /// The next step of a stream of `group`, which may not go beyond the position `limit`.
    pub(super) fn step(&mut self, group: &Group, mirror: &Mirror, limit: u64, metrics: &Metrics) -> Step {
        match *self {
            Self::At(position) if position == limit => Step::Reached,
            Self::At(position) if position > limit => Step::Wait,
            Self::At(position) => self.read_on(position, group, mirror, limit, metrics),
            Self::After(place) => match mirror.resolve(place) {
                Resolved::At(position) => {
                    metrics.resumes.inc();
                    *self = Self::At(position);
                    self.step(group, mirror, limit, metrics)
                }
                Resolved::Lost(gap, position) => {
                    *self = Self::At(position);
                    Step::Send(told(&gap, group, metrics))
                }
                Resolved::Pending => Step::Wait,
            },
            Self::AtEnd | Self::Unknown => match mirror.end() {
                (position, Some(place)) => {
                    let reason =
                        if *self == Self::AtEnd { GapReason::Unavailable } else { GapReason::UnknownCursor };
                    *self = Self::At(position);
                    let gap = Gap { reason, after: None, before: None, place: Some(place) };
                    Step::Send(told(&gap, group, metrics))
                }
                (_, None) => Step::Wait,
            },
        }
    }

    fn read_on(
        &mut self,
        position: u64,
        group: &Group,
        mirror: &Mirror,
        limit: u64,
        metrics: &Metrics,
    ) -> Step {
        let most = usize::try_from(limit - position).unwrap_or(PAGE).min(PAGE);
        let (begin, items) = mirror.read(position, most);
        if begin > position {
            // So slow that the mirror has dropped what it has not read yet.
            *self = Self::At(begin);
            let gap = Gap { reason: GapReason::Trimmed, after: None, before: None, place: None };
            return Step::Send(told(&gap, group, metrics));
        }
        let (encoded, taken) = group.encode_until(&items, CHUNK);
        *self = Self::At(position + taken);
        metrics.deliveries.inc_by(encoded.events.into());
        metrics.gaps.inc_by(encoded.gaps.into());
        Step::Send(encoded.bytes)
    }
}

fn told(gap: &Gap, group: &Group, metrics: &Metrics) -> Bytes {
    metrics.gaps.inc();
    group.gap(gap)
}
