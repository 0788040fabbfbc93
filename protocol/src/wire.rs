//! What two nodes tell each other on their control stream, and how it is framed.
//!
//! A frame is its length (4 bytes, little endian), then a postcard-encoded [`PeerMessage`]. The first frame in either
//! direction is [`PeerMessage::Hello`]; a peer with another version is refused before anything else is read.

use serde::{Deserialize, Serialize};

use crate::{ids::ArtifactId, pieces::PieceSet};

/// The version of the control stream's messages.
pub const WIRE_VERSION: u16 = 2;

/// ALPN of the control stream.
pub const CONTROL_ALPN: &[u8] = b"firmesh/control/1";

/// The longest frame: the bitfield of a 32 GiB artifact is 16 KiB, a full revocation list 200 KiB.
pub const FRAME_BYTES_MAX: usize = 256 << 10;

/// The most pieces one `Got` names.
pub const GOT_PIECES_MAX: usize = 4_096;

/// What nodes tell each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerMessage {
    /// The first word.
    Hello {
        /// [`WIRE_VERSION`] of the sender.
        version: u16,
    },
    /// The sender takes part in an artifact's swarm, and this is all it holds of it.
    Holds {
        /// The artifact.
        artifact: ArtifactId,
        /// Its pieces.
        pieces: PieceSet,
    },
    /// The sender verified more pieces.
    Got {
        /// The artifact.
        artifact: ArtifactId,
        /// The new pieces.
        pieces: Vec<u32>,
    },
    /// The sender does not hold the artifact any more.
    Dropped {
        /// The artifact.
        artifact: ArtifactId,
    },
    /// A signed `Brake`, as its envelope: what a peer may have missed.
    Brake {
        /// The envelope.
        envelope: Vec<u8>,
    },
    /// The signed `RevocationList`, as its envelope.
    Revocations {
        /// The envelope.
        envelope: Vec<u8>,
    },
}

/// A frame that was not understood.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The declared length is above the bound.
    #[error("a frame of {0} bytes was announced, at most {FRAME_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// The bytes are not a message.
    #[error("the frame is not a peer message")]
    Malformed(#[source] postcard::Error),
    /// Bytes follow the message.
    #[error("{0} bytes follow the message in its frame")]
    TrailingBytes(usize),
    /// More pieces than one message may name.
    #[error("a message names {0} pieces, at most {GOT_PIECES_MAX} are allowed")]
    TooManyPieces(usize),
    /// The peer speaks another version.
    #[error("the peer speaks version {0} of the control stream, this node speaks {WIRE_VERSION}")]
    Version(u16),
}

impl PeerMessage {
    /// The message as a frame, its length first.
    ///
    /// # Panics
    /// If the message is longer than a frame: senders split `Got`, and no bitfield is that long.
    #[must_use]
    pub fn to_frame(&self) -> Vec<u8> {
        let body = postcard::to_allocvec(self).expect("peer messages always encode");
        assert!(
            body.len() <= FRAME_BYTES_MAX,
            "a peer message of {} bytes does not fit a frame",
            body.len()
        );
        let mut frame = u32::try_from(body.len()).expect("bounded above").to_le_bytes().to_vec();
        frame.extend_from_slice(&body);
        frame
    }

    /// The length of the body that follows a frame's first four bytes.
    pub fn body_length(header: [u8; 4]) -> Result<usize, FrameError> {
        let length = u32::from_le_bytes(header) as usize;
        if length > FRAME_BYTES_MAX {
            Err(FrameError::TooLong(length))
        } else {
            Ok(length)
        }
    }

    /// Reads a frame's body.
    pub fn from_body(body: &[u8]) -> Result<Self, FrameError> {
        if body.len() > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong(body.len()));
        }
        let (message, rest) = postcard::take_from_bytes::<Self>(body).map_err(FrameError::Malformed)?;
        if !rest.is_empty() {
            return Err(FrameError::TrailingBytes(rest.len()));
        }
        match &message {
            Self::Hello { version } if *version != WIRE_VERSION => Err(FrameError::Version(*version)),
            Self::Got { pieces, .. } if pieces.len() > GOT_PIECES_MAX => Err(FrameError::TooManyPieces(pieces.len())),
            _ => Ok(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_survive_their_frames() {
        let artifact = ArtifactId::of(b"image");
        for message in [
            PeerMessage::Hello { version: WIRE_VERSION },
            PeerMessage::Holds {
                artifact,
                pieces: PieceSet::full(130),
            },
            PeerMessage::Got {
                artifact,
                pieces: (0..4_096).collect(),
            },
            PeerMessage::Dropped { artifact },
        ] {
            let frame = message.to_frame();
            let length = PeerMessage::body_length(*frame.first_chunk().unwrap()).unwrap();
            assert_eq!(length, frame.len() - 4);
            assert_eq!(PeerMessage::from_body(&frame[4..]).unwrap(), message);
        }
    }

    #[test]
    fn the_largest_bitfield_fits_a_frame() {
        let total = crate::chunk::PieceLayout::new(crate::limits::ARTIFACT_BYTES_MAX).pieces();
        let message = PeerMessage::Holds {
            artifact: ArtifactId::of(b"image"),
            pieces: PieceSet::full(total),
        };
        assert!(message.to_frame().len() <= FRAME_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = PeerMessage::from_body(&body);
        }
    }
}
