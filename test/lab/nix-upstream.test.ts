/**
 * A cache upstream with real parts: nginx serving a flat cache that Nix itself wrote (xz), real agents in a network, the real Nix on each. What
 * one has fetched there the others take from it; and when the cache is gone, or hangs, nobody waits for it.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { freePort, type RealAgent, until } from '../agents.ts'
import { invite, joinWith, Lab, says } from '../cluster/members.ts'
import { takeFrom } from '../network.ts'
import { hasNix, NixClosure, SecondStore } from '../nix-paths.ts'

const NGINX = '/usr/sbin/nginx'
const PATHS = 20
/** It is a courtesy: a member that is too busy to answer a claim in time is not waited for. */
const COPIES_MAX = 1.25

/** Serves a directory, from start() until disposed. */
class Nginx implements AsyncDisposable {
  readonly url: string
  readonly #log: string
  readonly #process: ChildProcess

  private constructor(directory: string, cache: string, port: number) {
    this.#log = join(directory, 'access.log')
    this.url = `http://127.0.0.1:${port}`
    const config = join(directory, 'nginx.conf')
    writeFileSync(
      config,
      `daemon off; pid ${directory}/pid; error_log ${directory}/error.log; worker_processes 1;
       ${process.getuid?.() === 0 ? 'user root;' : ''} events {}
       http { access_log ${this.#log}; client_body_temp_path ${directory}; proxy_temp_path ${directory};
         fastcgi_temp_path ${directory}; uwsgi_temp_path ${directory}; scgi_temp_path ${directory};
         server { listen 127.0.0.1:${port}; root ${cache}; } }`,
    )
    this.#process = spawn(NGINX, ['-p', directory, '-c', config], { stdio: 'ignore' })
  }

  static async start(directory: string, cache: string): Promise<Nginx> {
    mkdirSync(directory)
    const nginx = new Nginx(directory, cache, await freePort())
    await until(() => fetch(`${nginx.url}/nix-cache-info`).then((answer) => answer.ok), { what: 'nginx answers' })
    return nginx
  }

  /** NARs that were asked for. */
  nars(): string[] {
    return existsSync(this.#log) ? (readFileSync(this.#log, 'utf8').match(/GET \/nar\/\S+/g) ?? []) : []
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const ended = new Promise((resolve) => this.#process.once('exit', resolve))
    if (this.#process.exitCode !== null) return
    this.#process.kill('SIGTERM')
    await ended
  }
}

describe.skipIf(!hasNix || !existsSync(NGINX))('a cache upstream', () => {
  let lab: Lab
  let agents: RealAgent[]
  let nginx: Nginx
  let closure: NixClosure
  beforeAll(async () => {
    lab = await Lab.open()
    closure = await NixClosure.make({ paths: PATHS, bytesEach: 50_000, bytesInRoot: 3_000_000 })
    const [secret, open] = [lab.path('secret'), lab.path('public')]
    execFileSync('nix-store', ['--generate-binary-cache-key', 'upstream-1', secret, open])
    const cache = lab.path('cache')
    const nix = ['--extra-experimental-features', 'nix-command', 'copy', '--to', `file://${cache}?secret-key=${secret}`]
    execFileSync('nix', [...nix, closure.root], { stdio: 'pipe' })
    nginx = await Nginx.start(lab.path('nginx'), cache)
    const key = readFileSync(open, 'utf8').trim()
    const flags = ['--no-open', '--upstreams', nginx.url, '--trusted-keys', key]
    const first = await lab.start({ name: 'a', flags })
    await says(first, 'network', 'create', 'home')
    agents = [first]
    for (const name of ['b', 'c', 'd']) {
      const agent = await lab.start({ name, flags, bootstrap: [await first.address()] })
      await joinWith(agent, await invite(first))
      agents.push(agent)
    }
    await until(
      async () => (await Promise.all(agents.map((one) => one.status()))).every((one) => one.peers.length === 3),
      {
        what: 'all members are connected',
        ms: 30_000,
      },
    ).catch(() => undefined)
  })
  afterAll(async () => {
    await nginx?.[Symbol.asyncDispose]()
    await closure?.[Symbol.asyncDispose]()
    await lab?.[Symbol.asyncDispose]()
  })

  async function installs(agent: RealAgent): Promise<number> {
    await using store = await SecondStore.make()
    const { ok, stderr, ms } = await store.realise(closure.root, await takeFrom(agent))
    expect(ok, `${agent.name}: ${stderr}`).toBe(true)
    expect(await store.requisites(closure.root)).toEqual(closure.paths)
    expect(await store.verify()).not.toMatch(/modified|error|disappeared/)
    return ms
  }

  it('is fetched from once by three that install at the same time, and not at all by a fourth', async () => {
    const took = await Promise.all(agents.slice(0, 3).map(installs))
    const together = nginx.nars().length
    expect(new Set(nginx.nars()).size).toBe(PATHS)
    expect(together).toBeLessThanOrEqual(PATHS * COPIES_MAX)
    took.push(await installs(agents[3] as RealAgent))
    expect(nginx.nars().length).toBe(together)
    console.log(
      `${together} NARs of ${PATHS} from nginx for three, none for a fourth; ${took.map((ms) => ms.toFixed(0)).join(', ')} ms`,
    )
  })

  it('is not missed by who has it when it is gone, and its misses cost nothing', async () => {
    const [a] = agents as [RealAgent]
    await nginx[Symbol.asyncDispose]()
    await installs(a)
    const { substituters } = await takeFrom(a)
    const ask = async (nth: number) => {
      const answer = await fetch(`${substituters[0]}/${`${nth}`.padStart(32, '0')}.narinfo`)
      expect(answer.status).toBe(404)
    }
    for (let nth = 0; nth < 5; nth++) await ask(nth)
    const startMs = performance.now()
    for (let nth = 5; nth < 105; nth++) await ask(nth)
    const each = (performance.now() - startMs) / 100
    console.log(`a miss with a cache that is down: ${each.toFixed(2)} ms`)
    expect(each).toBeLessThan(10)
    const { warnings } = await a.status()
    expect(warnings.map(({ code }) => code)).toContain('upstream.resting')
  })

  it('that hangs keeps Nix waiting once', async () => {
    const silent = createServer(() => undefined)
    const port = await freePort()
    await new Promise<void>((resolve) => silent.listen(port, '127.0.0.1', resolve))
    await using alone = await lab.start({
      name: 'alone',
      flags: ['--no-open', '--upstreams', `http://127.0.0.1:${port}`],
    })
    const url = (await takeFrom(alone)).substituters[0]
    const startMs = performance.now()
    await Promise.all(
      Array.from({ length: 200 }, (_, nth) =>
        fetch(`${url}/${`${nth}`.padStart(32, '0')}.narinfo`).then((one) => one.text()),
      ),
    )
    const tookMs = performance.now() - startMs
    console.log(`200 misses with a cache that hangs: ${tookMs.toFixed(0)} ms`)
    // Twenty-five at a time would wait twelve seconds.
    expect(tookMs).toBeLessThan(5_000)
    silent.close()
  })
})
