//! nginx with HTTPS and curl into a file, each one process of its own; the same cipher as ours.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::resource::UsageWho,
    time::{clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};
use tokio::{net::TcpStream, process::Command};

use super::{Load, ends::LOOPBACK, settle};
use crate::{
    bench::{Spent, cpu_time_of, find_program},
    demo::{place::Place, processes::Processes},
};

const SERVER: &str = "nginx";
const CLIENT: &str = "curl";
const IMAGE: &str = "image.bin";

/// How long nginx may take until it listens, and between two looks.
const LISTENS_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Programs that are not installed.
pub(super) fn missing() -> Vec<&'static str> {
    let programs = [SERVER, CLIENT].into_iter();
    programs.filter(|program| find_program(program).is_none()).collect()
}

/// Moves the image; what both processes spent. Neither outlives this, whatever comes.
pub(super) async fn transfer(folder: &Path, load: &Load) -> Result<Spent> {
    fs::create_dir_all(folder.join("files"))?;
    fs::write(folder.join("files").join(IMAGE), &load.image)?;
    let certificate = rcgen::generate_simple_self_signed([LOOPBACK.ip().to_string()])?;
    let ca = folder.join("certificate.pem");
    fs::write(&ca, certificate.cert.pem())?;
    fs::write(folder.join("key.pem"), certificate.signing_key.serialize_pem())?;

    let mut processes = Processes::new(&folder.join("logs"))?;
    let listen = TcpListener::bind(LOOPBACK)?.local_addr()?; // free again when nginx takes it
    start_nginx(&mut processes, folder, listen).await?;
    let nginx = processes.id(SERVER).context("nginx does not run")?;
    settle().await?;

    let (file, url) = (folder.join(IMAGE), format!("https://{listen}/{IMAGE}"));
    let mut curl = Command::new(find_program(CLIENT).context("curl is not installed")?);
    // No file and no variable of whoever runs this says anything about it.
    curl.args(["--disable", "--silent", "--show-error", "--fail", "--noproxy", "*"])
        .args(["--http1.1", "--tlsv1.3", "--cacert"])
        .arg(&ca)
        .arg("--output")
        .args([file.as_os_str(), url.as_ref()])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let cpu = || -> Result<Duration> { Ok(cpu_time_of(UsageWho::RUSAGE_CHILDREN)? + cpu_of_process(nginx)?) };
    let (start, before) = (Instant::now(), cpu()?);
    let output = curl.output().await.context("curl cannot be started")?;
    let spent = Spent {
        wall: start.elapsed(),
        cpu: cpu()? - before,
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        processes.check()?;
        bail!("curl failed ({}): {}", output.status, said.trim());
    }
    processes.stop_all();
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(fs::File::open(&file)?)?;
    ensure!(
        hasher.finalize().as_bytes() == load.tree.root.as_bytes(),
        "curl wrote other bytes than nginx had"
    );
    Ok(spent)
}

async fn start_nginx(processes: &mut Processes, folder: &Path, listen: SocketAddr) -> Result<()> {
    let config = folder.join("nginx.conf");
    fs::write(&config, nginx_config(folder, listen)?)?;
    let program = find_program(SERVER).context("nginx is not installed")?;
    let args = ["-c".into(), config.into(), "-p".into(), folder.into()];
    processes.start_program(SERVER, &Place::default(), program, args.to_vec())?;
    let deadline = Instant::now() + LISTENS_WITHIN;
    while TcpStream::connect(listen).await.is_err() {
        processes.check()?;
        ensure!(
            Instant::now() < deadline,
            "nginx does not listen on {listen} after {LISTENS_WITHIN:?}"
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// One process that writes nowhere but in `folder`.
fn nginx_config(folder: &Path, listen: SocketAddr) -> Result<String> {
    let folder = folder.to_str().filter(|folder| !folder.contains(['"', '\\', '$']));
    let folder = folder.context("nginx cannot be told the name of the temporary folder")?;
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("{name}_temp_path \"{folder}/{name}\"; "))
        .collect();
    Ok(format!(
        "daemon off; master_process off; pid \"{folder}/pid\"; error_log \"{folder}/error.log\"; \
         events {{ worker_connections 64; }} \
         http {{ access_log off; sendfile on; {temp}\
         server {{ listen {listen} ssl; root \"{folder}/files\"; \
         ssl_certificate \"{folder}/certificate.pem\"; ssl_certificate_key \"{folder}/key.pem\"; \
         ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256; }} }}"
    ))
}

/// What a process that still runs has spent so far.
fn cpu_of_process(pid: u32) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid.try_into()?)).context("the CPU time of nginx")?;
    Ok(clock_gettime(clock).context("the CPU time of nginx")?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_would_say_something_else_to_nginx_is_refused() {
        let config = |folder: &str| nginx_config(Path::new(folder), LOOPBACK);
        assert!(
            config("/tmp/a b")
                .unwrap()
                .contains(r#"ssl_certificate "/tmp/a b/certificate.pem";"#)
        );
        for folder in [r#"/tmp/"; root "/"#, "/tmp/$host", r"/tmp/\"] {
            assert!(config(folder).is_err(), "{folder}");
        }
    }
}
