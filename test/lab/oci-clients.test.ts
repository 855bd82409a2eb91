/**
 * Images by the programs that people have: podman builds, pushes, pulls and runs, buildah and containerd's ctr push and pull. Always pushed
 * to one node and pulled from another, with no registry anywhere.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { chmodSync, copyFileSync, existsSync, mkdirSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type Outcome, type RealAgent, run, until } from '../agents.ts'
import { invite, joinWith, Lab, says } from '../cluster/members.ts'
import { isInstalled } from '../images.ts'

const SOON = { ms: 60_000, everyMs: 50 }
const BUSYBOX = '/bin/busybox'
const PROGRAMS = ['podman', 'buildah', 'ctr', 'containerd', 'runc']
const missing = PROGRAMS.filter((program) => !isInstalled(program))
if (missing.length > 0) process.stderr.write(`not installed, and so not tested: ${missing.join(', ')}\n`)

describe.skipIf(missing.length > 0 || !existsSync(BUSYBOX))('clients', () => {
  let lab: Lab
  let a: RealAgent
  let b: RealAgent
  /** `127.0.0.1:PORT`, as clients name a registry. */
  const hosts = new Map<RealAgent, string>()
  const at = (agent: RealAgent, reference: string) => `${hosts.get(agent)}/${reference}`
  const digestAt = async (agent: RealAgent, name: string, tag: string) => {
    const answer = await fetch(`http://${hosts.get(agent)}/v2/${name}/manifests/${tag}`, { method: 'HEAD' })
    return answer.headers.get('docker-content-digest')
  }
  const arrives = async (name: string, tag: string) => {
    const digest = await digestAt(a, name, tag)
    expect(digest).toMatch(/^sha256:/)
    await until(async () => (await digestAt(b, name, tag)) === digest, {
      ...SOON,
      what: `${name}:${tag} is known on b`,
    })
  }

  beforeAll(async () => {
    lab = await Lab.open()
    a = await lab.start({ name: 'a', flags: ['--no-open'] })
    await says(a, 'network', 'create', 'home')
    b = await lab.start({ name: 'b', flags: ['--no-open'], bootstrap: [await a.address()] })
    await joinWith(b, await invite(a))
    for (const agent of [a, b]) hosts.set(agent, new URL((await agent.status()).http ?? '').host)
    writeRoot(lab.path('root'))
    await does('tar', ['cf', lab.path('root.tar'), '-C', lab.path('root'), '.'])
  })
  afterAll(() => lab?.[Symbol.asyncDispose]())

  it('podman pushes, pulls and runs', async () => {
    const podman = engine(lab, 'podman', 'pushing')
    await podman(
      'import',
      '--change',
      'CMD ["/bin/sh","-c","echo hello from the first node"]',
      lab.path('root.tar'),
      'localhost/hello:1',
    )
    await podman('push', '--tls-verify=false', 'localhost/hello:1', `docker://${at(a, 'home/hello:1')}`)
    await arrives('home/hello', '1')
    const other = engine(lab, 'podman', 'pulling')
    await other('pull', '--tls-verify=false', at(b, 'home/hello:1'))
    const { stdout } = await other('run', '--rm', '--network', 'none', at(b, 'home/hello:1'))
    expect(stdout).toBe('hello from the first node\n')
  })

  it('buildah builds on what is there, and pushes it', async () => {
    const buildah = engine(lab, 'buildah', 'building')
    const { stdout } = await buildah('from', '--tls-verify=false', at(b, 'home/hello:1'))
    const container = stdout.trim()
    await buildah('config', '--label', 'built=here', container)
    await buildah('commit', container, 'localhost/built:1')
    await buildah('push', '--tls-verify=false', 'localhost/built:1', `docker://${at(a, 'home/team/built:1')}`)
    await arrives('home/team/built', '1')
    await engine(lab, 'buildah', 'pulling')('pull', '--tls-verify=false', `docker://${at(b, 'home/team/built:1')}`)
  })

  it('containerd pulls by its hosts.toml, and pushes', async () => {
    await using containerd = await Containerd.start(lab)
    const hostsDirectory = lab.path('hosts')
    mkdirSync(hostsDirectory)
    for (const host of hosts.values()) {
      mkdirSync(join(hostsDirectory, host))
      lab.file(join('hosts', host, 'hosts.toml'), `server = "http://${host}"\n`)
    }
    const ctr = (...args: string[]) => does('ctr', ['--address', containerd.socket, 'images', ...args])
    const pulled = at(b, 'home/team/built:1')
    await ctr('pull', '--hosts-dir', hostsDirectory, pulled)
    const pushed = at(a, 'home/by-ctr:1')
    await ctr('tag', pulled, pushed)
    await ctr('push', '--hosts-dir', hostsDirectory, pushed)
    await arrives('home/by-ctr', '1')
    expect(await digestAt(b, 'home/by-ctr', '1')).toBe(await digestAt(a, 'home/team/built', '1'))
    await ctr('pull', '--hosts-dir', hostsDirectory, at(b, 'home/by-ctr:1'))
  })
})

/** Nothing but busybox: enough to run a line of shell. */
function writeRoot(directory: string): void {
  mkdirSync(join(directory, 'bin'), { recursive: true })
  copyFileSync(BUSYBOX, join(directory, 'bin', 'busybox'))
  chmodSync(join(directory, 'bin', 'busybox'), 0o755)
  symlinkSync('busybox', join(directory, 'bin', 'sh'))
}

/** podman or buildah with a store of its own, and a configuration that runs in containers as well. */
function engine(lab: Lab, program: 'podman' | 'buildah', name: string): (...args: string[]) => Promise<Outcome> {
  const directory = lab.path(`${program}-${name}`)
  mkdirSync(join(directory, 'networks'), { recursive: true })
  const conf = lab.file(
    join(`${program}-${name}`, 'containers.conf'),
    `
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
[network]
network_config_dir = "${join(directory, 'networks')}"
`,
  )
  const own = ['--root', join(directory, 'store'), '--runroot', join(directory, 'run'), '--storage-driver', 'vfs']
  return (...args) => does(program, [...own, ...args], { CONTAINERS_CONF: conf })
}

/** containerd with directories and a socket of its own. */
class Containerd implements AsyncDisposable {
  readonly socket: string
  readonly #child: ChildProcess

  private constructor(child: ChildProcess, socket: string) {
    this.#child = child
    this.socket = socket
  }

  static async start(lab: Lab): Promise<Containerd> {
    const socket = lab.path('containerd.sock')
    const skipped = ['grpc.v1.cri', ...['btrfs', 'zfs', 'devmapper', 'aufs'].map((one) => `snapshotter.v1.${one}`)]
    const conf = lab.file(
      'containerd.toml',
      `
version = 2
root = "${lab.path('containerd-root')}"
state = "${lab.path('containerd-state')}"
disabled_plugins = [${skipped.map((one) => `"io.containerd.${one}"`).join(', ')}]
[grpc]
address = "${socket}"
`,
    )
    const containerd = new Containerd(spawn('containerd', ['--config', conf], { stdio: 'ignore' }), socket)
    const answers = async () => (await run('ctr', ['--address', socket, 'version'])).code === 0
    await until(answers, { ...SOON, what: 'containerd answers' })
    return containerd
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const gone = new Promise((resolve) => this.#child.once('exit', resolve))
    if (this.#child.exitCode === null && this.#child.kill()) await gone
  }
}

async function does(program: string, args: readonly string[], env: Record<string, string> = {}): Promise<Outcome> {
  const outcome = await run(program, [...args], env)
  if (outcome.code !== 0) throw new Error(`${program} ${args.join(' ')}: ${outcome.stderr}${outcome.stdout}`)
  return outcome
}
