//! All streams of one principal with one filter: for them an event is filtered, signed and encoded once.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bytes::Bytes;

use super::{cursor, filter::Filter, wire};
use crate::{
    events::{Event, Gap, Item, Mirror, Place},
    identity::{Principal, SigningKeys},
};

/// Events in a snapshot.
const SNAPSHOT: usize = 5;

/// What signs cursors.
pub(super) struct Signer {
    pub(super) keys: SigningKeys,
    /// How long a cursor authorises, seconds.
    pub(super) window: u32,
}

/// Streams that get the same bytes.
pub(super) struct Group {
    pub(super) principal: Principal,
    pub(super) filter: Filter,
    pub(super) canonical: String,
    signer: Arc<Signer>,
    /// The latest encoding, for the other shards.
    latest: Mutex<(Range<u64>, Encoded)>,
    /// The latest snapshot's events and the position that it was taken at.
    snapshot: Mutex<Option<(u64, Arc<str>)>>,
}

/// Items as they go on the wire, and how many events there are among them.
#[derive(Clone, Default)]
pub(super) struct Encoded {
    pub(super) bytes: Bytes,
    pub(super) events: u32,
    pub(super) gaps: u32,
}

/// The beginning of a stream.
pub(super) struct Beginning {
    pub(super) position: u64,
    pub(super) place: Option<Place>,
    pub(super) events: Arc<str>,
}

impl Group {
    /// The encoding of `items`, which lie at these positions; shared by all that ask for the same.
    pub(super) fn encode(&self, positions: &Range<u64>, items: &[Item]) -> Encoded {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.0 != *positions {
            *latest = (positions.clone(), self.encode_until(items, usize::MAX).0);
        }
        latest.1.clone()
    }

    /// The encoding of `items` up to about `most` bytes, and how many of them it holds.
    pub(super) fn encode_until(&self, items: &[Item], most: usize) -> (Encoded, u64) {
        let (mut out, mut encoded, mut taken) = (Vec::new(), Encoded::default(), 0);
        let expires = self.expiry();
        let keys = self.signer.keys.load();
        for item in items {
            match item {
                Item::Event(event) if self.filter.wants(event) => {
                    encoded.events += 1;
                    let place = Place { epoch: event.epoch, id: event.id };
                    out.reserve_exact(event.text().len() + cursor::LONGEST);
                    self.write_id(&mut out, &keys.current, place, expires);
                    out.extend_from_slice(event.text().as_bytes());
                }
                Item::Event(_) => {}
                Item::Gap(gap) => {
                    encoded.gaps += 1;
                    self.write_gap(&mut out, gap);
                }
            }
            taken += 1;
            if out.len() >= most {
                break;
            }
        }
        out.shrink_to_fit();
        encoded.bytes = out.into();
        (encoded, taken)
    }

    /// A gap as it goes on the wire.
    pub(super) fn gap(&self, gap: &Gap) -> Bytes {
        let mut out = Vec::new();
        self.write_gap(&mut out, gap);
        out.into()
    }

    fn write_gap(&self, out: &mut Vec<u8>, gap: &Gap) {
        if let Some(place) = gap.place {
            self.write_id(out, &self.signer.keys.load().current, place, self.expiry());
        }
        wire::gap(out, gap);
    }

    /// A heartbeat, with a fresh cursor of `place`.
    pub(super) fn heartbeat(&self, place: Option<Place>) -> Bytes {
        let mut out = Vec::with_capacity(200);
        if let Some(place) = place {
            self.write_id(&mut out, &self.signer.keys.load().current, place, self.expiry());
        }
        wire::heartbeat(&mut out);
        out.into()
    }

    /// Position and snapshot for a stream that begins now.
    pub(super) fn begin(&self, mirror: &Mirror) -> Beginning {
        let mut cached = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        let (position, place) = mirror.end();
        if let Some((at, events)) = &*cached
            && *at == position
        {
            return Beginning { position, place, events: Arc::clone(events) };
        }
        let latest = mirror.latest(SNAPSHOT, |event: &Event| self.filter.wants(event));
        let events: Arc<str> = wire::snapshot_events(&latest.events).into();
        *cached = Some((latest.position, Arc::clone(&events)));
        Beginning { position: latest.position, place: latest.place, events }
    }

    /// `id:` line with the cursor of a place.
    pub(super) fn id_line(&self, place: Place) -> Vec<u8> {
        let mut out = Vec::with_capacity(cursor::LONGEST);
        self.write_id(&mut out, &self.signer.keys.load().current, place, self.expiry());
        out
    }

    /// When a cursor issued now stops to authorise: never before its window is over, so the second that has begun
    /// does not count.
    fn expiry(&self) -> u32 {
        cursor::now().saturating_add(self.signer.window).saturating_add(1)
    }

    fn write_id(&self, out: &mut Vec<u8>, key: &crate::identity::SigningKey, place: Place, expires: u32) {
        out.extend_from_slice(b"id: ");
        cursor::write(out, key, &self.principal, &self.canonical, place, expires);
        out.push(b'\n');
    }
}

/// The groups that have streams.
pub(super) struct Groups {
    signer: Arc<Signer>,
    groups: Mutex<HashMap<(Principal, Filter), Weak<Group>>>,
}

impl Groups {
    pub(super) fn new(signer: Signer) -> Self {
        Self { signer: Arc::new(signer), groups: Mutex::default() }
    }

    /// The group of a principal and filter, new if no stream of it is open.
    pub(super) fn join(&self, principal: Principal, filter: Filter) -> Arc<Group> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (principal, filter);
        if let Some(group) = groups.get(&key).and_then(Weak::upgrade) {
            return group;
        }
        if groups.len() == groups.capacity() {
            groups.retain(|_, group| group.strong_count() > 0);
        }
        let group = Arc::new(Group {
            principal: key.0.clone(),
            canonical: key.1.canonical(),
            filter: key.1.clone(),
            signer: Arc::clone(&self.signer),
            latest: Mutex::default(),
            snapshot: Mutex::default(),
        });
        groups.insert(key, Arc::downgrade(&group));
        group
    }
}
