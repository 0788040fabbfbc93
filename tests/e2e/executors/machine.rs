//! A machine with real firmware: OVMF in QEMU starts GRUB, which starts a Linux kernel out of one of two slots. What falls back does so by
//! what GRUB does with its environment, and by nothing of ours.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use firmesh_protocol::{api::CampaignState, report::AttemptState};
use firmesh_tests::{
    kernel::kernel,
    packages::{ensure_command, ensure_file},
    process::Process,
    python::run,
    setup::{NEW, OLD, release_name},
    wait::{Seen, until},
};

use super::{ENDS_WITHIN, approve_within, bring, count, explained, one_node, version};

/// Where what is fetched once is kept.
const KEPT: &str = env!("CARGO_TARGET_TMPDIR");

/// What does not come up at all.
const BROKEN: &str = "1.0.9";

/// Emulated instruction by instruction, beside other tests.
const BOOTS_WITHIN: Duration = Duration::from_secs(180);

/// The firmware, and the variables that it begins with, as Debian's package has them.
const FIRMWARE: [&str; 2] = ["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"];

/// The boot loader's whole rule: what is to be tried is forgotten before it is started. The disks are in the order in which the
/// machine has them: the boot loader's own, the environment's, slot A, slot B.
const GRUB_CFG: &str = r#"
serial --unit=0 --speed=115200
terminal_output serial
set env="(hd1,msdos1)/grubenv"
load_env --file $env saved_slot try_slot
set slot="$saved_slot"
if [ -n "$try_slot" ]; then
    set slot="$try_slot"
    set try_slot=
    save_env --file $env try_slot
fi
echo "GRUB starts slot $slot"
if [ "$slot" = b ]; then set disk=hd3; else set disk=hd2; fi
linux ($disk)/vmlinuz console=ttyS0 panic=1 quiet slot=$slot
initrd ($disk)/initrd
boot
"#;

/// The system in a slot: it says on the second serial line that it is up. One that is broken ends at once, which the kernel does
/// not survive.
const INIT: &str = r#"#!/bin/busybox sh
busybox mount -t proc proc /proc
busybox mount -t devtmpfs dev /dev
for word in $(busybox cat /proc/cmdline); do case $word in slot=*) slot=${word#slot=};; esac; done
version=$(busybox cat /version)
echo "$version is up, from slot $slot"
if [ "$version" = 1.0.9 ]; then echo "$version gives up"; exit 1; fi
boot_id=$(busybox cat /proc/sys/kernel/random/boot_id)
printf '{"slot":"%s","boot_id":"%s","version":"%s","model":"R1","vendor":"Acme"}\n' "$slot" "$boot_id" "$version" > /dev/ttyS1
while :; do busybox sleep 3600; done
"#;

/// The power supply: whenever the machine is off it is switched on again. It is off when it restarts, and then reads the environment
/// afresh. What the system says of itself on the second serial line, after what the firmware has sent there, is its status, which is gone
/// before the next start. Twenty starts are more than a test needs, and end a machine that cannot be started.
const POWER: &str = r#"
for _ in $(seq 20); do
    rm -f status.json
    setpriv --pdeathsig KILL "$1" -machine q35 -accel tcg -cpu max -m 256 -nodefaults -display none -no-reboot -pidfile qemu.pid \
        -drive if=pflash,format=raw,unit=0,readonly=on,file="$2" -drive if=pflash,format=raw,unit=1,file=vars.fd \
        -drive if=none,id=d0,format=raw,readonly=on,file=loader.img -device virtio-blk-pci,drive=d0,bootindex=0 \
        -drive if=none,id=d1,format=vvfat,file=fat:rw:boot -device virtio-blk-pci,drive=d1,bootindex=1 \
        -drive if=none,id=d2,format=raw,readonly=on,file=slot_a -device virtio-blk-pci,drive=d2,bootindex=2 \
        -drive if=none,id=d3,format=raw,readonly=on,file=slot_b -device virtio-blk-pci,drive=d3,bootindex=3 \
        -chardev file,id=console,path=console.log,append=on -serial chardev:console \
        -chardev stdio,id=status,signal=off -serial chardev:status < /dev/null |
    while read -r line; do
        case $line in *{*}*) printf '{%s\n' "${line#*\{}" > status.new && mv status.new status.json ;; esac
    done
done
"#;

/// The button: off, which the power supply does not leave it for long.
const RESET: &str = r#"
set -e
cd "$1"
pid=$(cat qemu.pid)
kill "$pid"
for _ in $(seq 200); do
    kill -0 "$pid" 2>/dev/null || exit 0
    sleep 0.05
done
echo "the machine does not go off" >&2
exit 1
"#;

/// A machine that has been switched on, with the old version in slot A.
struct Machine {
    folder: PathBuf,
    power: Process,
}

impl Machine {
    fn start(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder.join("boot"))?;
        let file = |name: &str| folder.join(name);
        let [code, variables] = FIRMWARE.map(|file| ensure_file(&[file], "ovmf"));
        let (code, variables) = (code?, variables?);
        fs::copy(variables, file("vars.fd"))?;
        loader(folder)?;
        let editor = ensure_command("grub-editenv", "grub-common")?;
        let env = file("boot/grubenv");
        run(&editor, [env.as_os_str(), "create".as_ref()])?;
        let words = [
            "set",
            "saved_slot=a",
            "try_slot=",
            "slot_a_state=empty",
            "slot_b_state=empty",
        ]
        .map(AsRef::as_ref);
        run(&editor, [&[env.as_os_str()][..], &words[..]].concat())?;
        fs::copy(image(folder, OLD)?, file("slot_a"))?;
        fs::write(file("slot_b"), [0; 512])?;
        fs::write(file("reset.sh"), RESET)?;
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", POWER, "power"])
            .arg(ensure_command("qemu-system-x86_64", "qemu-system-x86")?)
            .arg(code)
            .current_dir(folder);
        let power = Process::spawn("the machine", command, &file("power.log"))?;
        let folder = folder.to_owned();
        Ok(Self { folder, power })
    }

    fn executor(&self) -> String {
        let file = |name: &str| self.folder.join(name).display().to_string();
        format!(
            "kind = \"ab_slot\", slot_a = {:?}, slot_b = {:?}, env_file = {:?}, status_file = {:?}, \
             reset_command = [\"sh\", {:?}, {:?}], vendor = \"Acme\", model = \"R1\"",
            file("slot_a"),
            file("slot_b"),
            file("boot/grubenv"),
            file("status.json"),
            file("reset.sh"),
            file("")
        )
    }

    fn status(&self) -> String {
        fs::read_to_string(self.folder.join("status.json")).unwrap_or_default()
    }

    async fn is_up(&self, slot: &str, version: &str) -> Result<()> {
        until(&format!("{version} in slot {slot}"), BOOTS_WITHIN, async || {
            let status = self.status();
            let is_it = [slot, version]
                .iter()
                .all(|word| status.contains(&format!("\"{word}\"")));
            Ok(Seen::when(is_it, || self.last_words()))
        })
        .await
    }

    /// What the boot loader and the systems have said, each start of a slot in turn.
    fn said(&self) -> Result<Vec<String>> {
        let console = fs::read(self.folder.join("console.log"))?;
        let console = String::from_utf8_lossy(&console);
        let of_interest = ["GRUB starts slot ", " is up, from slot ", " gives up", "Kernel panic"];
        let lines = console.lines().filter_map(|line| {
            let at = of_interest.iter().find_map(|words| line.find(words))?;
            // Before the words stand a version, a time, or what moves a cursor.
            let from = line[..at].rfind([' ', 'H', '\r', ']']).map_or(0, |at| at + 1);
            Some(line[from..].trim().to_owned())
        });
        Ok(lines.collect())
    }

    fn last_words(&self) -> String {
        let console = fs::read(self.folder.join("console.log")).unwrap_or_default();
        let end = &console[console.len().saturating_sub(2_000)..];
        format!("{}{}", self.power.log(), String::from_utf8_lossy(end))
    }
}

/// The disk that the firmware starts from: GRUB and its rule.
fn loader(folder: &Path) -> Result<()> {
    let file = |name: &str| folder.join(name).display().to_string();
    fs::write(folder.join("grub.cfg"), GRUB_CFG)?;
    ensure_file(&["/usr/lib/grub/x86_64-efi/normal.mod"], "grub-efi-amd64-bin")?;
    let maker = ensure_command("grub-mkstandalone", "grub-common")?;
    let modules = "normal linux loadenv echo test serial terminal tar fat part_msdos boot";
    let (output, config) = (file("grub.efi"), format!("boot/grub/grub.cfg={}", file("grub.cfg")));
    let args = [
        "--format=x86_64-efi",
        "--locales=",
        "--fonts=",
        "--themes=",
        "--modules=tar fat part_msdos",
    ];
    let install = format!("--install-modules={modules}");
    run(
        &maker,
        args.into_iter().chain([&*install, "--output", &output, &config]),
    )?;
    let [format, folders, copy] = ["mformat", "mmd", "mcopy"].map(|command| ensure_command(command, "mtools"));
    let disk = file("loader.img");
    fs::File::create(&disk)?.set_len(8 << 20)?;
    run(&format?, ["-i", &disk, "::"])?;
    run(&folders?, ["-i", &disk, "::/EFI", "::/EFI/BOOT"])?;
    run(&copy?, ["-i", &disk, &output, "::/EFI/BOOT/BOOTX64.EFI"]).map(drop)
}

/// The image of a version: an archive, which GRUB reads as a disk, of a kernel and a system.
fn image(folder: &Path, version: &str) -> Result<PathBuf> {
    let root = folder.join(format!("root-{version}"));
    for name in ["bin", "proc", "dev"] {
        fs::create_dir_all(root.join(name))?;
    }
    let busybox = ensure_file(&["/bin/busybox"], "busybox-static")?;
    fs::copy(busybox, root.join("bin/busybox"))?;
    fs::write(root.join("version"), format!("{version}\n"))?;
    fs::write(root.join("init"), INIT)?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
    let parts = folder.join(format!("parts-{version}"));
    fs::create_dir_all(&parts)?;
    let cpio = ensure_command("cpio", "cpio")?;
    let pack = format!(
        "cd {:?} && find . | {:?} --quiet -o -H newc > {:?}",
        root,
        cpio,
        parts.join("initrd")
    );
    run(Path::new("/bin/sh"), ["-ec", &pack])?;
    fs::copy(kernel(Path::new(KEPT))?, parts.join("vmlinuz"))?;
    let image = folder.join(format!("{version}.img"));
    run(
        &ensure_command("tar", "tar")?,
        [
            "--create".as_ref(),
            "--file".as_ref(),
            image.as_os_str(),
            "--directory".as_ref(),
            parts.as_os_str(),
            "vmlinuz".as_ref(),
            "initrd".as_ref(),
        ],
    )?;
    Ok(image)
}

/// Five starts: the old system; the broken one on trial and, by itself, the old one; the new one on trial; and that one for good.
#[tokio::test]
async fn a_machine_whose_new_slot_dies_starts_the_old_one_by_itself_and_keeps_one_that_was_confirmed() -> Result<()> {
    one_node(async |fleet| {
        let folder = fleet.folder().join("machine");
        let machine = Machine::start(&folder)?;
        let images = [OLD, BROKEN, NEW].map(|version| image(&folder, version));
        let [old, broken, new] = images;
        let (old, broken, new) = (old?, broken?, new?);
        machine.is_up("a", OLD).await?;
        let images = [(old.as_path(), OLD), (broken.as_path(), BROKEN), (new.as_path(), NEW)];
        bring(fleet, "host", &machine.executor(), &images).await?;

        let begin = |id: &str, to: &str| {
            let [to, back] = [to, OLD].map(|version| release_name("host", version));
            approve_within(fleet, id, (&to, &back), (300, 120))?;
            fleet.operator.ok(&["campaign", "start", id])
        };
        begin("broken", BROKEN)?;
        let view = fleet.campaign_ends("broken", 2 * ENDS_WITHIN).await?;
        let why = explained(fleet, "broken")?;
        ensure!(view.state == CampaignState::RolledBack, "{view:?}, {why}");
        ensure!(count(&view, AttemptState::Failed) == 1, "{view:?}, {why}");
        ensure!(
            why.contains("the device runs 1.0.0 after its reset, not 1.0.9"),
            "{why}"
        );
        machine.is_up("a", OLD).await?;
        let fell_back = [
            "GRUB starts slot a",
            "1.0.0 is up, from slot a",
            "GRUB starts slot b",
            "1.0.9 is up, from slot b",
            "1.0.9 gives up",
            "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100",
            "GRUB starts slot a",
            "1.0.0 is up, from slot a",
        ];
        ensure!(machine.said()? == fell_back, "{:?}", machine.said()?);

        begin("spring", NEW)?;
        let view = fleet.campaign_ends("spring", 2 * ENDS_WITHIN).await?;
        ensure!(
            view.state == CampaignState::Completed,
            "{view:?}, {}",
            explained(fleet, "spring")?
        );
        ensure!(
            version(fleet).await?.as_deref() == Some(NEW),
            "{:?}",
            version(fleet).await?
        );
        ensure!(
            fs::read(folder.join("slot_b"))? == fs::read(&new)?,
            "slot B does not hold the image"
        );
        let before = machine.status();
        let reset = [folder.join("reset.sh"), folder.clone()];
        run(Path::new("/bin/sh"), reset)?;
        until("another start", BOOTS_WITHIN, async || {
            Ok(Seen::when(machine.status() != before, || before.clone()))
        })
        .await?;
        machine.is_up("b", NEW).await?;
        let said = machine.said()?;
        let kept = ["GRUB starts slot b", "1.1.0 is up, from slot b"];
        ensure!(said[fell_back.len()..] == [kept, kept].concat(), "{said:?}");
        Ok(())
    })
    .await
    .context("a machine in QEMU")
}
