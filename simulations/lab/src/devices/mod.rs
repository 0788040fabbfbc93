//! Emulated devices: the models of `firmesh-simulations`, served as real BMCs over HTTPS and real hosts on files.
//!
//! Everything that must survive a restart of the emulator lies in its state folder, so that a killed emulator goes on
//! where it was, on the same ports. `endpoints.json` there says where everything is, once it listens.

mod bios;
mod bmc;
mod config;
mod control;
mod host;
mod state;
mod tls;
mod wire;

#[cfg(test)]
mod tests;

pub(crate) use config::{BootLoader, CatalogueConfig, DeviceConfig, DeviceKind, DevicesConfig};
pub(crate) use host::request_reset;
pub(crate) use state::{EndpointKind, Endpoints};

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use axum_server::{Handle, tls_rustls::RustlsConfig};
use firmesh_protocol::ids::DeviceId;
use firmesh_simulations::device::{Bmc, BmcSettings, Host, HostSettings};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::{bmc::BmcServer, host::HostServer, state::Kept};

/// What the emulator emulates.
#[derive(Debug, Default)]
struct Fleet {
    bmcs: BTreeMap<DeviceId, Arc<BmcServer>>,
    hosts: BTreeMap<DeviceId, Arc<HostServer>>,
}

/// Serves all devices of `config` until `cancel`. Relative paths in it start at `base`.
///
/// Fails at the first thing that is wrong before it serves anything; once `endpoints.json` is written, everything listens.
pub(crate) async fn run(config: DevicesConfig, base: &Path, cancel: CancellationToken) -> Result<()> {
    // What is written to `endpoints.json` is read by processes that stand elsewhere.
    let base = &std::env::current_dir()
        .context("finding the current folder")?
        .join(base);
    let state = base.join(&config.state);
    std::fs::create_dir_all(&state).with_context(|| format!("creating the state folder {}", state.display()))?;
    let mut endpoints = Endpoints::load(&state)?;
    let server_tls = RustlsConfig::from_config(tls::server(&config.tls, base, &state, &mut endpoints)?);
    let pull = bmc::pull_client(&config, base)?;
    let catalogue = config.catalogue();
    let (mut fleet, mut tasks) = (Fleet::default(), JoinSet::new());
    for device in &config.devices {
        let place = || format!("device {}", device.id);
        let kept = state.join(format!("{}.json", device.id));
        match &device.kind {
            DeviceKind::Bmc { listen, flash_ms } => {
                let settings = BmcSettings {
                    identity: device.identity(),
                    catalogue: catalogue.clone(),
                    username: config.username.clone(),
                    password: config.password.clone(),
                    flash_ms: *flash_ms,
                    boot_ms: device.boot_ms,
                };
                let fresh = || Bmc::new(settings.clone(), device.version.clone(), now_ms());
                let bmc = Kept::open(kept, fresh, |bmc| bmc.settings = settings.clone()).with_context(place)?;
                bmc.change(|bmc| {
                    bmc.misbehaviour = bmc.misbehaviour.or(device.misbehaviour);
                    let active: Vec<u32> = bmc
                        .tasks()
                        .filter(|(_, task)| task.is_active())
                        .map(|(id, _)| id)
                        .collect();
                    for task in active {
                        bmc.update_failed(now_ms(), task, "the BMC was restarted".to_owned());
                    }
                });
                let listener = listen_again(*listen, endpoints.port(&device.id)).with_context(place)?;
                endpoints.add(
                    &device.id,
                    EndpointKind::Bmc {
                        url: format!("https://{}", listener.local_addr()?),
                    },
                );
                let server = Arc::new(BmcServer::new(bmc, pull.clone()));
                serve_tls(
                    &mut tasks,
                    listener,
                    server_tls.clone(),
                    bmc::router(Arc::clone(&server)),
                    &cancel,
                )?;
                fleet.bmcs.insert(device.id.clone(), server);
            }
            DeviceKind::Host {
                dir,
                image,
                boot_loader,
            } => {
                let dir = dir
                    .as_ref()
                    .map_or_else(|| state.join("hosts").join(device.id.as_str()), |dir| base.join(dir));
                let mut catalogue = catalogue.clone();
                let first = host::prepare(
                    &dir,
                    device,
                    image.as_ref().map(|image| base.join(image)),
                    *boot_loader,
                    &mut catalogue,
                )
                .with_context(place)?;
                let settings = HostSettings {
                    identity: device.identity(),
                    catalogue,
                    boot_ms: device.boot_ms,
                };
                let kept = Kept::open(
                    kept,
                    || Host::new(settings.clone()),
                    |host| host.settings = settings.clone(),
                )
                .with_context(place)?;
                kept.change(|host| host.misbehaviour = host.misbehaviour.or(device.misbehaviour));
                endpoints.add(&device.id, EndpointKind::Host { dir: dir.clone() });
                let server = Arc::new(HostServer::new(kept, dir));
                if first {
                    server.restart().with_context(place)?;
                }
                tasks.spawn(Arc::clone(&server).run(cancel.clone()));
                fleet.hosts.insert(device.id.clone(), server);
            }
        }
    }
    let listener = listen_again(config.control, endpoints.control_port())?;
    endpoints.control = format!("http://{}", listener.local_addr()?);
    listener.set_nonblocking(true)?;
    let control = axum_server::from_tcp(listener)?.handle(stop_with(&cancel, &mut tasks));
    let router = control::router(Arc::new(fleet));
    tasks.spawn(async move { Ok(control.serve(router.into_make_service()).await?) });
    endpoints.save(&state)?;
    tracing::info!(devices = config.devices.len(), control = %endpoints.control, "devices emulated");
    while let Some(ended) = tasks.join_next().await {
        ended.context("a device's task died")??;
    }
    Ok(())
}

fn serve_tls(
    tasks: &mut JoinSet<Result<()>>,
    listener: TcpListener,
    tls: RustlsConfig,
    router: axum::Router,
    cancel: &CancellationToken,
) -> Result<()> {
    listener.set_nonblocking(true)?;
    let server = axum_server::from_tcp_rustls(listener, tls)?.handle(stop_with(cancel, tasks));
    tasks.spawn(async move { Ok(server.serve(router.into_make_service()).await?) });
    Ok(())
}

/// A handle that stops its server when `cancel` says so.
fn stop_with(cancel: &CancellationToken, tasks: &mut JoinSet<Result<()>>) -> Handle<SocketAddr> {
    let (handle, cancel) = (Handle::new(), cancel.clone());
    let stopping = handle.clone();
    tasks.spawn(async move {
        cancel.cancelled().await;
        stopping.graceful_shutdown(Some(Duration::from_millis(200)));
        Ok(())
    });
    handle
}

/// Listens where the configuration says; on any port only if the one of the last run is taken.
fn listen_again(listen: Option<SocketAddr>, last_port: Option<u16>) -> Result<TcpListener> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let wanted = match (listen, last_port) {
        (Some(fixed), _) if fixed.port() != 0 => fixed,
        (given, Some(port)) => SocketAddr::new(given.unwrap_or(any).ip(), port),
        (given, None) => given.unwrap_or(any),
    };
    TcpListener::bind(wanted).with_context(|| format!("listening on {wanted}"))
}

fn now_ms() -> u64 {
    let since_1970 = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    since_1970.as_millis().try_into().unwrap_or(u64::MAX)
}
