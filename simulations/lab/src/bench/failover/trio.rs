//! Three coordinators on one PostgreSQL, behind a load balancer that somebody else wrote (HAProxy).

use std::{
    fmt::Write as _,
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use toml::{Table, Value};

use crate::{
    demo::{
        api::Api,
        layout::{Layout, Shape},
        place::Place,
        world::{COORDINATOR, World},
    },
    packages::ensure_command,
    postgres::Postgres,
};

/// What its processes are called; the first one is the world's own.
const NAMES: [&str; 3] = [COORDINATOR, "coordinator-b", "coordinator-c"];

const DATABASE: &str = "firmesh";

/// Between two looks at something that is awaited, and the most that is waited for it.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const WITHIN: Duration = Duration::from_secs(60);

/// A coordinator that does not say by then what it is has no role.
const ROLE_WITHIN: Duration = Duration::from_millis(500);

/// The coordinators, what stands before and behind them.
#[derive(Debug)]
pub(super) struct Trio {
    pub(super) world: World,
    balanced: String,
    token: String,
    members: Vec<String>,
    http: reqwest::Client,
    _postgres: Postgres,
}

impl Trio {
    pub(super) async fn begin(folder: &Path, lease: Option<&str>) -> Result<Self> {
        let haproxy = ensure_command("haproxy", "haproxy")?;
        let postgres = Postgres::start()?;
        postgres.create_database(DATABASE)?;
        let balanced = [free_port()?, free_port()?];
        let mut ports = Vec::new();
        for _ in NAMES {
            ports.push([free_port()?, free_port()?]);
        }
        let shape = Shape {
            racks: 0,
            nodes: 0,
            bmcs: 0,
            hosts: 0,
        };
        let mut layout = Layout::new(folder, &shape)?;
        let password = folder.join("database.password");
        fs::write(&password, postgres.password())?;
        fs::set_permissions(&password, fs::Permissions::from_mode(0o600))?;
        let config = |at: usize| -> Result<Table> {
            let text = format!(
                "[operators]\nlisten = \"127.0.0.1:{}\"\n[nodes]\nlisten = \"127.0.0.1:{}\"\nurl = \"https://127.0.0.1:{}\"\n\
                 [files]\ndir = {:?}\n[database]\nurl = {:?}\npassword = {{ file = {:?} }}\nconnections_max = 30\n\
                 [cluster]\nname = {:?}\n",
                ports[at][0],
                ports[at][1],
                balanced[1],
                folder.join("files").display().to_string(),
                postgres.url(DATABASE),
                password.display().to_string(),
                NAMES[at],
            );
            let mut config: Table = toml::from_str(&text)?;
            if let (Some(lease), Some(Value::Table(cluster))) = (lease, config.get_mut("cluster")) {
                cluster.insert("lease".to_owned(), lease.into());
            }
            Ok(config)
        };
        layout.coordinator_more = config(0)?;
        let mut world = World::begin(layout).await?;
        let first = world.layout.coordinator_state();
        let token = fs::read_to_string(first.join("operator.token"))?.trim().to_owned();
        for (at, name) in NAMES.iter().enumerate().skip(1) {
            let state = folder.join(name);
            copy_secrets(&first, &state)?;
            let mut config = config(at)?;
            config.insert("state_dir".to_owned(), state.display().to_string().into());
            let file = folder.join(format!("{name}.toml"));
            fs::write(&file, toml::to_string(&config)?)?;
            let args = vec!["coordinator".into(), "--config".into(), file.into()];
            world.processes.start(name, &Place::default(), args)?;
        }
        let config = folder.join("haproxy.cfg");
        fs::write(&config, balancing(balanced, &ports)?)?;
        let args = vec!["-db".into(), "-f".into(), config.into()];
        world
            .processes
            .start_program("haproxy", &Place::default(), haproxy, args)?;
        let mut trio = Self {
            members: ports
                .iter()
                .map(|[port, _]| format!("http://127.0.0.1:{port}"))
                .collect(),
            balanced: format!("http://127.0.0.1:{}", balanced[0]),
            token,
            world,
            http: reqwest::Client::builder().tls_certs_only([]).no_proxy().build()?,
            _postgres: postgres,
        };
        for name in &NAMES[1..] {
            trio.follows(name).await?;
        }
        trio.world.api = trio.api()?;
        let begun = Instant::now();
        while trio.world.api.get::<serde_json::Value>("/api/v1/about").await.is_err() {
            if begun.elapsed() > WITHIN {
                bail!("the balancer hands nothing on");
            }
            trio.world.processes.check()?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(trio)
    }

    /// The operators' face, at the balancer, over connections of one's own.
    pub(super) fn api(&self) -> Result<Api> {
        Api::new(&self.balanced, Some(self.token.clone()), None)
    }

    /// The process that leads.
    pub(super) async fn leader(&mut self) -> Result<&'static str> {
        self.await_role("leader", &NAMES).await
    }

    /// Starts a coordinator again, and waits until it stands by.
    pub(super) async fn again(&mut self, name: &'static str) -> Result<()> {
        self.world.processes.restart(name)?;
        self.follows(name).await
    }

    async fn follows(&mut self, name: &'static str) -> Result<()> {
        self.await_role("follower", &[name]).await.map(drop)
    }

    async fn await_role(&mut self, role: &str, asked: &[&'static str]) -> Result<&'static str> {
        let begun = Instant::now();
        while begun.elapsed() < WITHIN {
            for (name, url) in NAMES.into_iter().zip(&self.members) {
                if asked.contains(&name) && self.role(url).await.is_some_and(|found| found == role) {
                    return Ok(name);
                }
            }
            self.world.processes.check()?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
        bail!("none of {asked:?} was a {role} within {WITHIN:?}")
    }

    /// What a coordinator says that it is.
    async fn role(&self, url: &str) -> Option<String> {
        let asked = self.http.get(format!("{url}/health")).timeout(ROLE_WITHIN);
        let answer = asked.send().await.ok()?;
        answer.headers().get("firmesh-role")?.to_str().ok().map(str::to_owned)
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// What the coordinator's README says must be copied.
fn copy_secrets(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.join("keys"))?;
    for entry in fs::read_dir(from.join("keys"))? {
        let path = entry?.path();
        let name = path.file_name().context("a key has a name")?;
        fs::copy(&path, to.join("keys").join(name))?;
    }
    fs::copy(from.join("operator.token"), to.join("operator.token"))?;
    Ok(())
}

/// As the coordinator's README has it, but with more frequent looks.
fn balancing(listens: [u16; 2], ports: &[[u16; 2]]) -> Result<String> {
    let mut text = "global\n  maxconn 4000\ndefaults\n  mode tcp\n  timeout connect 1s\n  timeout check 3s\n  timeout client 120s\n  \
                    timeout server 120s\n  retries 3\n  option redispatch 1\n  option httpchk GET /health\n  balance roundrobin\n  \
                    default-server check inter 500ms fall 3 rise 1 on-marked-down shutdown-sessions\n"
        .to_owned();
    for (face, (name, listens)) in ["operators", "nodes"].into_iter().zip(listens).enumerate() {
        writeln!(text, "listen {name}\n  bind 127.0.0.1:{listens}")?;
        for (at, member) in ports.iter().enumerate() {
            writeln!(text, "  server c{at} 127.0.0.1:{} port {}", member[face], member[0])?;
        }
    }
    Ok(text)
}
