/**
 * Who is at the other end of a loopback connection: the user that owns it, by the kernel's table of sockets (Linux). Reading is for any
 * program of this machine; what changes something, or shares it with others, only for those who may also use the agent's socket.
 */
import { readFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { isIPv6, type Socket } from 'node:net'

/** Column of /proc/net/tcp; below /proc/self it is seen by those, too, who see no more of /proc than processes. */
const UID_COLUMN = 7

export type CallerRules = {
  /** As who this agent runs. */
  uid: number
  /** Members of this group may, too; undefined where the socket is its owner's alone. */
  gid: number | undefined
}

/** The rules of this process; `isShared` when its socket is its group's. */
export function ownRules(isShared: boolean): CallerRules {
  return { uid: process.getuid?.() ?? -1, gid: isShared ? process.getgid?.() : undefined }
}

/** Why who connected may not change anything here; undefined when he may. */
export async function callerFault(
  socket: Pick<Socket, 'remoteAddress' | 'remotePort' | 'localPort'>,
  { uid, gid }: CallerRules,
): Promise<string | undefined> {
  const caller = await uidOf(socket)
  if (caller === undefined) return 'this system does not say which user you are'
  if (caller === uid || caller === 0 || (gid !== undefined && isMember(caller, gid))) return undefined
  return `the agent takes nothing from user ${caller}: it is that of user ${uid}`
}

/** The user whose socket the far end is; undefined where the kernel does not say. */
async function uidOf({
  remoteAddress = '',
  remotePort = 0,
  localPort = 0,
}: Pick<Socket, 'remoteAddress' | 'remotePort' | 'localPort'>): Promise<number | undefined> {
  const address = remoteAddress.replace(/^::ffff:/, '')
  const own = `${hexAddress(address)}:${hexPort(remotePort)}`
  try {
    const table = await readFile(isIPv6(address) ? '/proc/self/net/tcp6' : '/proc/self/net/tcp', 'utf8')
    for (const line of table.split('\n')) {
      const columns = line.trim().split(/\s+/)
      const [, local, remote = ''] = columns
      if (local !== own || !remote.endsWith(`:${hexPort(localPort)}`)) continue
      const uid = Number(columns[UID_COLUMN])
      return Number.isInteger(uid) ? uid : undefined
    }
  } catch {
    // No such table here.
  }
  return undefined
}

/** As the kernel prints it on machines of this byte order: words of 32 bits, each as a number. */
function hexAddress(address: string): string {
  // Only one IPv6 address is loopback.
  if (isIPv6(address)) return '00000000000000000000000001000000'
  return Buffer.from(address.split('.').map(Number).reverse()).toString('hex').toUpperCase()
}

function hexPort(port: number): string {
  return port.toString(16).toUpperCase().padStart(4, '0')
}

/** By the files: users whom a directory service adds are not known, and refused. */
function isMember(uid: number, gid: number): boolean {
  try {
    const user = readFileSync('/etc/passwd', 'utf8')
      .split('\n')
      .map((line) => line.split(':'))
      .find((columns) => Number(columns[2]) === uid && columns[2] !== '')
    if (user === undefined) return false
    if (Number(user[3]) === gid) return true
    const group = readFileSync('/etc/group', 'utf8')
      .split('\n')
      .map((line) => line.split(':'))
      .find((columns) => Number(columns[2]) === gid && columns[2] !== '')
    return group?.[3]?.split(',').includes(user[0] ?? '') ?? false
  } catch {
    return false
  }
}
