//! Verifies one metadata file again and again: our side of `firmesh-lab bench trust`, apart so that a release build of
//! it takes seconds. Arguments: root, file, role, how often. Prints nanoseconds.

use std::{env, hint::black_box, time::Instant};

use firmesh_protocol::trust::{Role, Root, SignedFile, Snapshot, Targets, Timestamp};

fn main() {
    let args: Vec<String> = env::args().collect();
    let [_, root, file, role, times] = args.as_slice() else {
        panic!("arguments: root, file, role, how often")
    };
    let root = read(root);
    let root: Root = (SignedFile::from_bytes("root", &root).and_then(|file| file.unverified("root"))).expect("a root");
    let (bytes, times) = (read(file), times.parse::<u32>().expect("a number"));
    let verify: fn(&Root, &[u8]) = match role.as_str() {
        "snapshot" => verify::<Snapshot>,
        "timestamp" => verify::<Timestamp>,
        _ => verify::<Targets>,
    };
    verify(&root, &bytes);
    #[expect(clippy::disallowed_methods, reason = "a measurement needs a clock")]
    let start = Instant::now();
    (0..times).for_each(|_| verify(&root, &bytes));
    println!("{}", start.elapsed().as_nanos());
}

fn verify<T: Role>(root: &Root, bytes: &[u8]) {
    let keys = root.key_set(T::KIND);
    let file = SignedFile::from_bytes("file", bytes).expect("metadata");
    black_box(file.verified::<T>("file", &keys.expect("keys")).expect("verified"));
}

#[expect(clippy::disallowed_methods, reason = "the files to measure with come from somewhere")]
fn read(path: &str) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}
