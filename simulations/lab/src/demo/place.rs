//! Where a process runs: beside this one on loopback, or in a network namespace of its own, which this one can look into.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    process::Command,
    sync::Arc,
};

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns};
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A place for one process.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The address that others reach it at.
    pub(crate) ip: IpAddr,
    /// Its network, if it is another one than ours.
    pub(crate) inside: Option<Inside>,
}

impl Default for Place {
    fn default() -> Self {
        Self {
            ip: Ipv4Addr::LOCALHOST.into(),
            inside: None,
        }
    }
}

impl Place {
    /// Any free port of this place.
    pub(crate) fn any_port(&self) -> SocketAddr {
        SocketAddr::new(self.ip, 0)
    }

    /// A command that runs `program` here.
    pub(crate) fn command(&self, program: &Path) -> Command {
        match &self.inside {
            None => Command::new(program),
            Some(inside) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &inside.namespace]).arg(program);
                command
            }
        }
    }
}

/// A thread that lives in another network namespace: what runs on it has that network. Ends with the last clone.
#[derive(Debug, Clone)]
pub(crate) struct Inside {
    pub(crate) namespace: String,
    handle: Handle,
    _end: Arc<DropGuard>,
}

impl Inside {
    /// Enters a namespace that `ip netns` made.
    pub(crate) fn enter(namespace: &str) -> Result<Self> {
        let path = Path::new("/run/netns").join(namespace);
        let file = File::open(&path).with_context(|| format!("there is no network namespace {}", path.display()))?;
        let (end, told) = (CancellationToken::new(), std::sync::mpsc::channel());
        let ended = end.clone();
        std::thread::Builder::new().name(namespace.to_owned()).spawn(move || {
            // A thread that is not moved must not run anything: its network would be the wrong one.
            let runtime = setns(file, CloneFlags::CLONE_NEWNET)
                .map_err(std::io::Error::from)
                .and_then(|()| Builder::new_current_thread().enable_all().build());
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => return told.0.send(Err(error)).unwrap_or_default(),
            };
            told.0.send(Ok(runtime.handle().clone())).unwrap_or_default();
            runtime.block_on(ended.cancelled());
        })?;
        let handle = told
            .1
            .recv()?
            .with_context(|| format!("the network namespace {namespace} cannot be entered"))?;
        Ok(Self {
            namespace: namespace.to_owned(),
            handle,
            _end: Arc::new(end.drop_guard()),
        })
    }

    /// Runs something there.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Result<T> {
        Ok(self.handle.spawn(work).await?)
    }
}
