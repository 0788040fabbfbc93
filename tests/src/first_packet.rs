//! The first packet of a QUIC connection by hand (RFC 9000, 9001), to carry what no QUIC library would send: the hello of
//! an older TLS.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustls::{
    ClientConfig, ClientConnection,
    crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
    pki_types::ServerName,
    quic::{self, Keys, Version},
};

/// What the other side's first packet holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The handshake goes on.
    Handshake,
    /// The connection is closed with this code: 0x100 and a TLS alert, if TLS is the reason.
    Closed(u64),
}

/// The code of a connection that ends with the alert `protocol_version`.
pub const PROTOCOL_VERSION: u64 = 0x100 + 70;

/// Where the packets come from.
const FROM: [u8; 8] = *b"stranger";

/// Clients have to fill their first datagrams up to this size.
const DATAGRAM_BYTES: usize = 1_200;

/// Frames of QUIC.
const PADDING: u64 = 0;
const PING: u64 = 1;
const ACK: u64 = 2;
const CRYPTO: u64 = 6;
const CONNECTION_CLOSE: u64 = 0x1c;

/// The hello of TLS 1.2, as it would go over TCP, without its record header.
pub fn hello_of_tls_1_2(config: ClientConfig, name: &str) -> Result<Vec<u8>> {
    let mut connection = ClientConnection::new(Arc::new(config), ServerName::try_from(name.to_owned())?)?;
    let mut record = Vec::new();
    connection.write_tls(&mut record)?;
    Ok(record.get(5..).context("a hello has a record header")?.to_vec())
}

/// The hello of TLS 1.3, as QUIC has it.
pub fn hello_of_tls_1_3(config: ClientConfig, name: &str) -> Result<Vec<u8>> {
    // One transport parameter is not optional: which connection id the packets come from.
    let parameters = [&[0x0f, 8][..], &FROM].concat();
    let name = ServerName::try_from(name.to_owned())?;
    let mut connection = quic::ClientConnection::new(Arc::new(config), Version::V1, name, parameters)?;
    let mut hello = Vec::new();
    connection.write_hs(&mut hello);
    Ok(hello)
}

/// Sends a hello in a first packet, and reads the first packet that comes back.
pub fn exchange(socket: &UdpSocket, address: SocketAddr, hello: &[u8]) -> Result<Answer> {
    let suite = TLS13_AES_128_GCM_SHA256.tls13().context("a suite of TLS 1.3")?;
    let algorithm = suite.quic.context("a suite that QUIC can use")?;
    // A connection id of its own, or the packet would belong to an earlier connection.
    let mut to = [0; 8];
    getrandom::fill(&mut to).map_err(|error| anyhow!("no randomness: {error}"))?;
    let keys = Keys::initial(Version::V1, suite, algorithm, &to, rustls::Side::Client);
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    socket.send_to(&first_packet(&keys, to, hello)?, address)?;
    let mut datagram = vec![0; 65_536];
    let (length, _) = socket.recv_from(&mut datagram)?;
    let payload = open(&keys, &mut datagram[..length])?;
    first_frame_that_counts(&payload)
}

fn first_packet(keys: &Keys, to: [u8; 8], hello: &[u8]) -> Result<Vec<u8>> {
    let mut payload = vec![CRYPTO as u8, 0];
    payload.extend(two_bytes(hello.len())?);
    payload.extend(hello);
    let mut header = vec![0xc3];
    header.extend(1_u32.to_be_bytes());
    for id in [to, FROM] {
        header.push(8);
        header.extend(id);
    }
    header.push(0); // no token
    let number_at = header.len() + 2;
    let tag = keys.local.packet.tag_len();
    payload.resize(payload.len().max(DATAGRAM_BYTES - number_at - 4 - tag), PADDING as u8);
    header.extend(two_bytes(4 + payload.len() + tag)?);
    header.extend([0; 4]); // packet number 0
    let sealed = keys.local.packet.encrypt_in_place(0, &header, &mut payload)?;
    let mut packet = [&header, &payload[..], sealed.as_ref()].concat();
    let (head, sampled) = packet.split_at_mut(number_at + 4);
    let (first, head) = head.split_at_mut(1);
    let sample = &sampled[..keys.local.header.sample_len()];
    keys.local
        .header
        .encrypt_in_place(sample, &mut first[0], &mut head[number_at - 1..])?;
    Ok(packet)
}

/// Takes the protection off a server's first packet.
fn open(keys: &Keys, datagram: &mut [u8]) -> Result<Vec<u8>> {
    ensure!(datagram.len() > 40 && datagram[0] & 0xf0 == 0xc0, "not a first packet");
    let mut at = 5;
    for _ in ["to", "from"] {
        at += 1 + usize::from(datagram[at]);
    }
    let token = varint(datagram, &mut at)?;
    at += usize::try_from(token)?;
    let length = usize::try_from(varint(datagram, &mut at)?)?;
    let packet = datagram.get_mut(..at + length).context("a packet ends early")?;
    let (head, sampled) = packet.split_at_mut(at + 4);
    let (first, head) = head.split_at_mut(1);
    let sample = &sampled[..keys.remote.header.sample_len()];
    keys.remote
        .header
        .decrypt_in_place(sample, &mut first[0], &mut head[at - 1..])?;
    let number_length = usize::from(packet[0] & 3) + 1;
    let number = packet[at..at + number_length]
        .iter()
        .fold(0, |number, byte| (number << 8) | u64::from(*byte));
    let (header, payload) = packet.split_at_mut(at + number_length);
    Ok(keys.remote.packet.decrypt_in_place(number, header, payload)?.to_vec())
}

fn first_frame_that_counts(payload: &[u8]) -> Result<Answer> {
    let mut at = 0;
    loop {
        match varint(payload, &mut at)? {
            PADDING | PING => {}
            ACK => {
                let (_largest, _delay) = (varint(payload, &mut at)?, varint(payload, &mut at)?);
                let ranges = varint(payload, &mut at)?;
                for _ in 0..=2 * ranges {
                    varint(payload, &mut at)?;
                }
            }
            CRYPTO => return Ok(Answer::Handshake),
            CONNECTION_CLOSE => return Ok(Answer::Closed(varint(payload, &mut at)?)),
            other => bail!("a frame of kind {other} in a first packet"),
        }
    }
}

/// A length below 16,384, in two bytes.
fn two_bytes(length: usize) -> Result<[u8; 2]> {
    ensure!(length < 1 << 14, "{length} bytes do not fit one packet");
    Ok((u16::try_from(length)? | 0x4000).to_be_bytes())
}

/// A number of one, two, four or eight bytes; the first two bits say which.
fn varint(bytes: &[u8], at: &mut usize) -> Result<u64> {
    let first = *bytes.get(*at).context("a packet ends early")?;
    let length = 1_usize << (first >> 6);
    let number = bytes.get(*at..*at + length).context("a packet ends early")?;
    *at += length;
    Ok(number[1..]
        .iter()
        .fold(u64::from(first & 0x3f), |number, byte| (number << 8) | u64::from(*byte)))
}
