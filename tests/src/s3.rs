//! An S3 server that somebody else wrote (moto), for a test: on loopback, with one bucket, ended with the test.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{
    process::Process,
    python::python_with,
    setup::{START_WITHIN, client},
    wait::{Seen, until},
};

/// The server.
const MOTO: [&str; 1] = ["moto[server,s3]==5.2.5"];

/// Where its environment is kept between runs.
const VENVS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/venvs");

const BUCKET: &str = "fleet";

/// The server. Dropping it ends it, and what it holds is gone: it keeps everything in memory.
#[derive(Debug)]
pub struct S3 {
    /// Its process.
    pub process: Process,
    url: String,
    http: reqwest::Client,
}

impl S3 {
    /// Starts a server, installing it first if need be, and makes the bucket.
    ///
    /// # Errors
    /// What is missing, by name, or what the server said.
    pub async fn start(root: &Path) -> Result<Self> {
        let python = python_with(Path::new(VENVS), "moto", &MOTO)?;
        let server = python
            .parent()
            .context("an interpreter has a folder")?
            .join("moto_server");
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(server);
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        let process = Process::spawn("moto_server", command, &root.join("moto.log"))?;
        let (http, url) = (client()?, format!("http://127.0.0.1:{port}"));
        until("the S3 server to answer", START_WITHIN, async || {
            Ok(Seen::Yes(http.get(format!("{url}/moto-api/")).send().await?))
        })
        .await?;
        let made = http.put(format!("{url}/{BUCKET}")).send().await?;
        ensure!(made.status().is_success(), "{}", made.text().await?);
        Ok(Self { process, url, http })
    }

    /// `[files.s3]` of a coordinator whose configuration lies in `folder`, where the keys are written.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn settings(&self, folder: &Path) -> Result<String> {
        for (file, secret) in [("s3.id", "somebody"), ("s3.key", "a key that moto does not check")] {
            fs::write(folder.join(file), secret)?;
            fs::set_permissions(folder.join(file), fs::Permissions::from_mode(0o600))?;
        }
        Ok(format!(
            "[files.s3]\nendpoint = {:?}\nbucket = {BUCKET:?}\nprefix = \"a/fleet\"\n\
             access_key_id = {{ file = \"s3.id\" }}\nsecret_access_key = {{ file = \"s3.key\" }}\n",
            self.url
        ))
    }

    /// The names of all objects, without the prefix.
    ///
    /// # Errors
    /// What the server said.
    pub async fn objects(&self) -> Result<Vec<String>> {
        let url = format!("{}/{BUCKET}?list-type=2&prefix=a/fleet/", self.url);
        let listed = self.http.get(url).send().await?.error_for_status()?.text().await?;
        let names = listed.split("<Key>a/fleet/").skip(1);
        Ok(names
            .filter_map(|rest| Some(rest.split_once("</Key>")?.0.to_owned()))
            .collect())
    }

    /// The bytes of an object.
    ///
    /// # Errors
    /// What the server said.
    pub async fn object(&self, name: &str) -> Result<Vec<u8>> {
        let url = format!("{}/{BUCKET}/a/fleet/{name}", self.url);
        let answer = self.http.get(url).send().await?.error_for_status()?;
        Ok(answer.bytes().await?.to_vec())
    }

    /// Puts other bytes in an object's place.
    ///
    /// # Errors
    /// What the server said.
    pub async fn replace(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        let url = format!("{}/{BUCKET}/a/fleet/{name}", self.url);
        self.http.put(url).body(bytes).send().await?.error_for_status()?;
        Ok(())
    }
}
