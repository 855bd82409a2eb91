/**
 * Datagrams to a unix socket, which Node cannot send: libc's sendto does, through koffi. Sending never waits.
 */

/** As in <sys/socket.h> of Linux. */
const AF_UNIX = 1
const SOCK_DGRAM = 2
const SOCK_CLOEXEC = 0o2000000
const MSG_DONTWAIT = 0x40
const MSG_NOSIGNAL = 0x4000
/** sockaddr_un: a family of two bytes, then the path. */
const PATH_BYTES_MAX = 108

/** False when it was not taken: nobody listens, the queue is full, or it is too large. */
export type Send = (message: Buffer) => boolean

/** Whether it is a path, or `@` and a name in the abstract namespace. */
export function isSocketAddress(address: string): boolean {
  return /^[@/]/.test(address) && pathOf(address).byteLength <= PATH_BYTES_MAX
}

/** One socket for the life of the process; who listens may go and come back, so it is not connected. @throws without koffi, or libc. */
export async function openDatagrams(address: string): Promise<Send> {
  const sockaddr = Buffer.concat([Buffer.from(new Uint16Array([AF_UNIX]).buffer), pathOf(address)])
  const { default: koffi } = await import('koffi')
  // The process itself has libc loaded, by whichever name.
  const libc = koffi.load(null)
  const socket = libc.func('int socket(int domain, int type, int protocol)')
  const sendto = libc.func(
    'intptr_t sendto(int fd, const void *bytes, size_t length, int flags, const void *address, uint32_t addressLength)',
  )
  const fd: number = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)
  return (message) =>
    Number(sendto(fd, message, message.byteLength, MSG_NOSIGNAL | MSG_DONTWAIT, sockaddr, sockaddr.byteLength)) >= 0
}

/** A name in the abstract namespace begins with a NUL and has none at its end. */
function pathOf(address: string): Buffer {
  return Buffer.from(address.startsWith('@') ? `\0${address.slice(1)}` : `${address}\0`)
}
