/**
 * `ssh -L` on this machine: a server and a client of OpenSSH with keys of their own, for as long as it is in use. The server runs as nobody
 * where the benchmark runs as root, since it would want a user of its own otherwise. Undefined where OpenSSH is not installed.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { chmodSync, chownSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir, userInfo } from 'node:os'
import { join } from 'node:path'
import { freePort, until } from '../test/agents.ts'
import { answers, type LanHost } from './lan.ts'

const SSHD = process.env.SSHD ?? '/usr/sbin/sshd'
const SSH = '/usr/bin/ssh'
const NOBODY = 65_534
const START_MS_MAX = 10_000

export class SshForward implements Disposable {
  /** Local ports, in the order of the far ones. */
  readonly ports: readonly number[]
  readonly #processes: ChildProcess[]
  readonly #directory: string

  private constructor(ports: readonly number[], processes: ChildProcess[], directory: string) {
    this.ports = ports
    this.#processes = processes
    this.#directory = directory
  }

  /** Between two hosts; without them on this machine's loopback. */
  static async start(
    farPorts: readonly number[],
    place?: { near: LanHost; far: LanHost },
  ): Promise<SshForward | undefined> {
    if (!existsSync(SSHD) || !existsSync(SSH)) return undefined
    const directory = mkdtempSync(join(tmpdir(), 'undernet-ssh-'))
    const file = (name: string) => join(directory, name)
    for (const key of ['host', 'user']) execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', file(key)])
    writeFileSync(file('authorized'), readFileSync(file('user.pub')))
    const isRoot = userInfo().uid === 0
    if (isRoot) {
      chmodSync(directory, 0o755)
      for (const name of ['host', 'authorized']) chownSync(file(name), NOBODY, NOBODY)
    }
    const port = await freePort()
    const address = place?.far.address ?? '127.0.0.1'
    const config = [
      `Port ${port}`,
      `ListenAddress ${address}`,
      `HostKey ${file('host')}`,
      `AuthorizedKeysFile ${file('authorized')}`,
      'StrictModes no',
      // Without it an account that has no password counts as locked.
      'UsePAM yes',
      'PidFile none',
    ]
    writeFileSync(file('config'), `${config.join('\n')}\n`)
    const as = isRoot ? ['setpriv', `--reuid=${NOBODY}`, `--regid=${NOBODY}`, '--clear-groups'] : []
    const server = spawnWithin(place?.far, [...as, SSHD, '-D', '-f', file('config')])
    await until(() => answers(place?.near, address, port), { what: 'sshd listens', ms: START_MS_MAX })
    const ports = await Promise.all(farPorts.map(() => freePort()))
    const client = spawnWithin(place?.near, [
      SSH,
      '-N',
      '-F',
      'none',
      '-i',
      file('user'),
      '-p',
      String(port),
      '-l',
      isRoot ? 'nobody' : userInfo().username,
      '-o',
      'StrictHostKeyChecking=no',
      '-o',
      `UserKnownHostsFile=${file('known')}`,
      '-o',
      'LogLevel=ERROR',
      ...ports.flatMap((local, at) => ['-L', `127.0.0.1:${local}:127.0.0.1:${farPorts[at]}`]),
      address,
    ])
    const forward = new SshForward(ports, [client, server], directory)
    await until(() => answers(place?.near, '127.0.0.1', ports[0] ?? 0), { what: 'ssh forwards', ms: START_MS_MAX })
    return forward
  }

  /** Both sides; a server forks for each connection, and again for the user. */
  get pids(): number[] {
    return this.#processes.map(({ pid }) => pid ?? 0)
  }

  [Symbol.dispose](): void {
    for (const child of this.#processes) child.kill()
    rmSync(this.#directory, { recursive: true, force: true })
  }
}

function spawnWithin(host: LanHost | undefined, command: readonly string[]): ChildProcess {
  const [program = '', ...args] = [...(host === undefined ? [] : ['ip', 'netns', 'exec', host.namespace]), ...command]
  return spawn(program, args, { stdio: ['ignore', 'ignore', 'inherit'] })
}
