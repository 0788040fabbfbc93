//! Several coordinators on one PostgreSQL, behind a load balancer that somebody else wrote (HAProxy).

use std::{
    fmt::Write as _, fs, net::TcpListener, os::unix::fs::PermissionsExt as _, path::Path, path::PathBuf,
    process::Command, time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    cluster::Shape,
    packages::ensure_command,
    postgres::Postgres,
    process::Process,
    s3::S3,
    setup::{START_WITHIN, client, start_coordinator},
    wait::{Seen, until},
};

/// The coordinators and the database. Dropping it ends all of them.
#[derive(Debug)]
pub struct Replicas {
    /// The coordinators.
    pub members: Vec<Member>,
    /// The database.
    pub postgres: Postgres,
    /// The bucket's server, if they have one.
    pub s3: Option<S3>,
    url: String,
    certificates: &'static str,
    http: reqwest::Client,
}

/// One of the coordinators.
#[derive(Debug)]
pub struct Member {
    /// Its process, while it runs.
    pub process: Process,
    /// Its own face towards operators.
    pub url: String,
    /// Where its configuration and state lie.
    pub folder: PathBuf,
    node_url: String,
}

const DATABASE: &str = "firmesh";

impl Replicas {
    /// Starts the coordinators of a fleet below `root`, each with the keys of the first, and the balancer before them.
    ///
    /// # Errors
    /// What is missing, or did not start.
    pub async fn start(root: &Path, shape: Shape) -> Result<(Self, Process)> {
        let Shape {
            coordinators: count,
            certificates,
            ..
        } = shape;
        let haproxy = ensure_command("haproxy", "haproxy")?;
        let postgres = Postgres::start()?;
        postgres.create_database(DATABASE)?;
        let s3 = if shape.bucket {
            Some(S3::start(root).await?)
        } else {
            None
        };
        let (operators, nodes) = (free_port()?, free_port()?);
        let mut members: Vec<Member> = Vec::new();
        for number in 0..count {
            let name = char::from(b'a' + u8::try_from(number)?);
            let folder = root.join(format!("coordinator-{name}"));
            fs::create_dir_all(&folder)?;
            if let Some(first) = members.first() {
                copy_secrets(&first.folder.join("coordinator"), &folder.join("coordinator"))?;
            }
            let password = folder.join("database.password");
            fs::write(&password, postgres.password())?;
            fs::set_permissions(&password, fs::Permissions::from_mode(0o600))?;
            let files = match &s3 {
                Some(s3) => s3.settings(&folder)?,
                None => format!("[files]\ndir = {:?}\n", root.join("files").display().to_string()),
            };
            let more = format!(
                "url = \"https://127.0.0.1:{nodes}\"\n{files}\
                 [database]\nurl = {:?}\npassword = {{ file = \"database.password\" }}\nconnections_max = 40\n\
                 [cluster]\nname = \"{name}\"\n",
                postgres.url(DATABASE),
            );
            fs::write(folder.join("coordinator-more.toml"), more)?;
            let (url, node_url) = (
                format!("http://127.0.0.1:{}", free_port()?),
                format!("https://127.0.0.1:{}", free_port()?),
            );
            let (process, _) = start_coordinator(&folder, Some((&url, &node_url)), certificates).await?;
            members.push(Member {
                process,
                url,
                node_url,
                folder,
            });
        }
        let config = root.join("haproxy.cfg");
        fs::write(&config, balancing(operators, nodes, &members)?)?;
        let mut command = Command::new(haproxy);
        command.arg("-db").arg("-f").arg(&config);
        let balancer = Process::spawn("haproxy", command, &root.join("haproxy.log"))?;
        let replicas = Self {
            members,
            postgres,
            s3,
            url: format!("http://127.0.0.1:{operators}"),
            certificates,
            http: client()?,
        };
        until("the balancer to hand on", START_WITHIN, async || {
            let health = replicas.http.get(format!("{}/health", replicas.url)).send().await?;
            Ok(Seen::Yes(health.error_for_status()?))
        })
        .await?;
        Ok((replicas, balancer))
    }

    /// The operators' face, at the balancer.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where the operator's token lies.
    #[must_use]
    pub fn token_file(&self) -> PathBuf {
        self.members[0].folder.join("coordinator/operator.token")
    }

    /// The one that says that it leads, among those that are asked.
    ///
    /// # Errors
    /// None does within a minute.
    pub async fn leader(&self, asked: impl Fn(usize) -> bool) -> Result<usize> {
        until("a coordinator to lead", START_WITHIN, async || {
            for at in (0..self.members.len()).filter(|at| asked(*at)) {
                if self.role(at).await.is_some_and(|role| role == "leader") {
                    return Ok(Seen::Yes(at));
                }
            }
            Ok(Seen::NotYet("none does".to_owned()))
        })
        .await
    }

    /// `leader` or `follower`, as a member says itself; `None` if it says nothing.
    pub async fn role(&self, at: usize) -> Option<String> {
        let asked = self.http.get(format!("{}/health", self.members[at].url));
        let answer = asked.timeout(Duration::from_millis(500)).send().await.ok()?;
        let role = answer.headers().get("firmesh-role")?;
        role.to_str().ok().map(str::to_owned)
    }

    /// Starts a member again where it was.
    ///
    /// # Errors
    /// What it said.
    pub async fn start_again(&mut self, at: usize) -> Result<()> {
        let member = &mut self.members[at];
        let addresses = (&*member.url, &*member.node_url);
        (member.process, _) = start_coordinator(&member.folder, Some(addresses), self.certificates).await?;
        Ok(())
    }

    /// What everybody said last.
    pub fn print_last_words(&self) {
        let members = self.members.iter().map(|member| &member.process);
        members.for_each(Process::print_last_words);
    }
}

/// A port that nobody listens on at the moment.
///
/// # Errors
/// Only if there is none.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// What the README says must be copied.
fn copy_secrets(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.join("keys"))?;
    for entry in fs::read_dir(from.join("keys"))? {
        let path = entry?.path();
        fs::copy(
            &path,
            to.join("keys").join(path.file_name().context("a key has a name")?),
        )?;
    }
    fs::copy(from.join("operator.token"), to.join("operator.token"))?;
    Ok(())
}

fn balancing(operators: u16, nodes: u16, members: &[Member]) -> Result<String> {
    let mut text = "global\n  maxconn 2000\ndefaults\n  mode tcp\n  timeout connect 1s\n  timeout check 1s\n  timeout client 120s\n  \
                    timeout server 120s\n  retries 3\n  option redispatch 1\n  option httpchk GET /health\n  balance roundrobin\n  \
                    default-server check inter 250ms fall 2 rise 1 on-marked-down shutdown-sessions\n"
        .to_owned();
    let address = |url: &str| url.split("://").last().unwrap_or(url).to_owned();
    for (face, port) in [("operators", operators), ("nodes", nodes)] {
        writeln!(text, "listen {face}\n  bind 127.0.0.1:{port}")?;
        for (at, member) in members.iter().enumerate() {
            let (operators, nodes) = (address(&member.url), address(&member.node_url));
            let own = if face == "operators" { &operators } else { &nodes };
            let check = operators.rsplit(':').next().context("an address has a port")?;
            writeln!(text, "  server c{at} {own} port {check}")?;
        }
    }
    Ok(text)
}
