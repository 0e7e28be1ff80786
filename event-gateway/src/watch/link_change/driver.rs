//! Which driver a device has.

use crate::netlink::checked;
use std::os::fd::RawFd;

/// `linux/sockios.h` and `linux/ethtool.h`.
const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 3;

/// The driver of a device in the network namespace of a socket; `None` where it does not tell.
pub fn of(device: &str, socket: RawFd) -> Option<String> {
    // `struct ethtool_drvinfo`: the command, the driver's name of 32 bytes, and more that is not asked for.
    let mut answer = [0u32; 49];
    answer[0] = ETHTOOL_GDRVINFO;
    // SAFETY: an all-zero request is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = answer.as_mut_ptr().cast();
    // SAFETY: the request points to memory of the size that the command fills, and both live through the call.
    checked(unsafe { libc::ioctl(socket, SIOCETHTOOL, &raw mut request) }).ok()?;
    let name: Vec<u8> =
        answer[1..9].iter().flat_map(|word| word.to_ne_bytes()).take_while(|&byte| byte != 0).collect();
    Some(String::from_utf8_lossy(&name).into_owned()).filter(|name| !name.is_empty())
}
