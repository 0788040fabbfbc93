"""One member of a BitTorrent swarm on a fast local network: rasterbar libtorrent over plain TCP, nobody found but by the tracker.

Arguments: seed, super-seed or peer; the address to listen on; the torrent, which may appear later; the folder with the file;
how many members the swarm has. An empty file "done" in that folder says that the file is whole and written; it goes on seeding.
"""

import pathlib
import sys
import time

import libtorrent as lt

LOOK_EVERY_S = 0.02

role, listen, torrent, folder, members = sys.argv[1:]
torrent, folder, members = pathlib.Path(torrent), pathlib.Path(folder), int(members)

session = lt.session({
    "listen_interfaces": listen,
    "listen_system_port_fallback": False,
    "alert_mask": lt.alert.category_t.error_notification
    | lt.alert.category_t.status_notification
    | lt.alert.category_t.storage_notification,
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    # Nothing else shares these links: TCP fills them, uTP would step back.
    "enable_incoming_utp": False,
    "enable_outgoing_utp": False,
    "in_enc_policy": lt.enc_policy.pe_disabled,
    "out_enc_policy": lt.enc_policy.pe_disabled,
    # Everybody knows everybody from the first second on.
    "connections_limit": 2 * members + 50,
    "connection_speed": 500,
    "smooth_connects": False,
    "min_reconnect_time": 2,
    "min_announce_interval": 2,
    # Slots are dealt out every 15 seconds: with fewer than members, some would wait that long for a first byte.
    "unchoke_slots_limit": members,
    # At 100 Mbit/s and 20 ms, 250 KB are on their way.
    "request_queue_time": 1,
    "max_out_request_queue": 1000,
})

while not torrent.exists():
    time.sleep(LOOK_EVERY_S)

params = lt.add_torrent_params()
params.ti = lt.torrent_info(str(torrent))
params.save_path = str(folder)
params.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
if role != "peer":
    params.flags |= lt.torrent_flags.seed_mode
if role == "super-seed":
    params.flags |= lt.torrent_flags.super_seeding
handle = session.add_torrent(params)

while True:
    session.wait_for_alert(1000)
    for alert in session.pop_alerts():
        if isinstance(alert, (lt.listen_failed_alert, lt.torrent_error_alert, lt.file_error_alert)):
            sys.exit(alert.message())
        if isinstance(alert, lt.torrent_finished_alert):
            # Checked; what waits to be written is written before it counts.
            handle.flush_cache()
        if isinstance(alert, lt.cache_flushed_alert) and handle.status().is_seeding:
            (folder / "done").touch()
