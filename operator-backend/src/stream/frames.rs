//! Where the frames of an HTTP/2 connection end, so that one that never does is noticed.

/// Length, type, flags and stream of a frame (RFC 9113, 4.1).
const HEADER: usize = 9;
const HEADERS: u8 = 1;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Follows the frames that a client sends, behind the preface.
#[derive(Default)]
pub(super) struct Frames {
    header: [u8; HEADER],
    /// Bytes of the frame's header so far.
    known: usize,
    /// Bytes of the frame's content that are still to come.
    missing: usize,
    /// Whether its headers go on in the next frame.
    goes_on: bool,
}

/// What some bytes came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// Whether the rest of something is still to come: a frame, or frames of one head.
    pub(super) is_amid: bool,
    /// Whether something that had begun has ended.
    pub(super) has_ended_one: bool,
}

impl Frames {
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Progress {
        let mut has_ended_one = false;
        while !bytes.is_empty() {
            let part = bytes.len().min(if self.known < HEADER { HEADER - self.known } else { self.missing });
            let (now, rest) = bytes.split_at(part);
            bytes = rest;
            if self.known < HEADER {
                if let Some(header) = self.header.get_mut(self.known..self.known + part) {
                    header.copy_from_slice(now);
                }
                self.known += part;
                if self.known == HEADER {
                    let [a, b, c, kind, flags, ..] = self.header;
                    self.missing = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                    if matches!(kind, HEADERS | PUSH_PROMISE | CONTINUATION) {
                        self.goes_on = flags & END_HEADERS == 0;
                    }
                }
            } else {
                self.missing -= part;
            }
            if self.known == HEADER && self.missing == 0 {
                self.known = 0;
                has_ended_one |= !self.goes_on;
            }
        }
        Progress { is_amid: self.known > 0 || self.goes_on, has_ended_one }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let [.., a, b, c] = u32::try_from(length).unwrap().to_be_bytes();
        let mut frame = vec![a, b, c, kind, flags, 0, 0, 0, 1];
        frame.resize(HEADER + length, 0xff);
        frame
    }

    #[test]
    fn a_head_ends_with_the_frame_that_says_so() {
        let mut frames = Frames::default();
        assert!(!frames.read(&frame(4, 0, 18)).is_amid, "settings");
        assert!(frames.read(&frame(HEADERS, 0, 30)).is_amid);
        let progress = frames.read(&frame(CONTINUATION, 0, 0));
        assert_eq!(progress, Progress { is_amid: true, has_ended_one: false });
        let progress = frames.read(&frame(CONTINUATION, END_HEADERS, 3));
        assert_eq!(progress, Progress { is_amid: false, has_ended_one: true });
    }

    proptest! {
        #[test]
        fn it_is_the_same_however_the_bytes_come(
            kinds in prop::collection::vec((0_u8..10, 0_u8..8, 0_usize..70_000), 1..8),
            cuts in prop::collection::vec(1_usize..40_000, 1..40),
        ) {
            let bytes: Vec<u8> = kinds.iter().flat_map(|(kind, flags, length)| frame(*kind, *flags, *length)).collect();
            let whole = Frames::default().read(&bytes);
            let (mut frames, mut rest, mut ended) = (Frames::default(), bytes.as_slice(), false);
            for cut in cuts.iter().cycle() {
                let (part, behind) = rest.split_at(rest.len().min(*cut));
                let progress = frames.read(part);
                ended |= progress.has_ended_one;
                rest = behind;
                if rest.is_empty() {
                    prop_assert_eq!(Progress { has_ended_one: ended, ..progress }, whole);
                    break;
                }
            }
        }

        #[test]
        fn any_bytes_are_followed(bytes: Vec<u8>) {
            let _ = Frames::default().read(&bytes);
        }
    }
}
