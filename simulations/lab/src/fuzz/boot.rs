//! What boot loaders keep on a host's disk: GRUB's environment and U-Boot's, and the file that says where U-Boot's lies.

use anyhow::Result;
use firmesh_executors_core::{BootEnv, EnvBlock, UbootEnv, parse_fw_env_config};

use super::targets::{Target, said};

/// The targets of this file.
pub(super) fn all() -> Result<Vec<Target>> {
    Ok(vec![boot_environment()?, uboot_environment()?, fw_env_config()])
}

fn boot_environment() -> Result<Target> {
    let mut block = EnvBlock::default();
    for (name, value) in [
        ("firmesh_saved", "a"),
        ("saved_entry", "gnulinux"),
        ("odd", "back\\slash"),
    ] {
        block.set(name, Some(value))?;
    }
    let seed = block.to_bytes()?.to_vec();
    let about = "a GRUB environment block, from a host's disk";
    Ok(Target::new("boot-environment", about, vec![seed], |input| {
        let block = EnvBlock::from_bytes(input).map_err(said)?;
        if let Ok(bytes) = block.to_bytes() {
            assert!(EnvBlock::from_bytes(&bytes).is_ok_and(|same| same == block));
        }
        BootEnv::from_block(&block).ok(); // any block is a block, few are a boot environment
        Ok(())
    }))
}

fn uboot_environment() -> Result<Target> {
    let mut env = UbootEnv::empty(256, false)?;
    for (name, value) in [("saved_slot", "a"), ("bootlimit", "1"), ("altbootcmd", "run bootcmd")] {
        env.set(name, Some(value))?;
    }
    let (_, seed) = env.next_copy()?;
    let about = "a copy of a U-Boot environment, from a host's disk: as the only one, and as both of two";
    Ok(Target::new("u-boot-environment", about, vec![seed], |input| {
        let both = UbootEnv::from_copies(&[input.to_vec(), input.to_vec()]);
        let env = UbootEnv::from_copies(&[input.to_vec()]).or(both).map_err(said)?;
        let (_, copy) = env.next_copy().map_err(said)?;
        assert_eq!(copy.len(), input.len());
        BootEnv::from_block(&env).ok(); // few are those of a host with slots
        Ok(())
    }))
}

fn fw_env_config() -> Target {
    let seeds = [
        "/dev/mmcblk0 0xc0000 0x20000\n/dev/mmcblk0 0xe0000 0x20000\n",
        "# one\n/boot/uboot.env 0 4000\n",
    ];
    let seeds = seeds.map(|seed| seed.as_bytes().to_vec()).to_vec();
    let about = "where a U-Boot environment lies, from a host's disk";
    Target::new("fw-env-config", about, seeds, |input| {
        let text = std::str::from_utf8(input).map_err(said)?;
        parse_fw_env_config(text).map(drop).map_err(said)
    })
}
