/**
 * The agent as an OCI registry: a large layer pushed and pulled, and many small images pulled at once. Against Debian's docker-registry,
 * which has the bytes for itself and no quota, no pins and no peers to mind. The layer is another in each turn, since what a registry has
 * it does not take again.
 */
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { createReadStream, mkdtempSync, rmSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { Agent, get, request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { Bundle, RealAgent } from '../test/agents.ts'
import { DockerRegistry } from './docker-registry.ts'
import { type Bench, byTurns, quantile, type Report, scaled, timed } from './harness.ts'
import { Random, writeRandomFile } from './random.ts'

const LAYER_BYTES = scaled(512) * 1024 * 1024
const LAYER_TURNS = { countMax: 5, msMax: 120_000 }
const PULLS = 100
const SMALL_LAYER_BYTES = 8_192
const PULL_TURNS = { countMax: 9, msMax: 60_000 }
const OCI_MANIFEST = 'application/vnd.oci.image.manifest.v1+json'
/** A network of the agent, and of docker-registry the beginning of a name. */
const REPOSITORY = 'open/bench'

export const bench: Bench = {
  name: 'oci',
  question: `How fast is a layer of ${LAYER_BYTES / 2 ** 20} MiB pushed and pulled, and ${PULLS} small images at once?`,
  minutesMax: 10,
  run,
}

async function run(report: Report): Promise<void> {
  await using stack = new AsyncDisposableStack()
  const registry = await DockerRegistry.start()
  if (registry === undefined) return report.note('docker-registry is not installed: there is nothing to compare with.')
  stack.use(registry)
  const bundle = stack.use(await Bundle.build())
  const agent = stack.use(await RealAgent.start({ name: 'registry', entry: bundle.entry, env: bundle.env }))
  const { http } = await agent.status()
  if (http === null) throw new Error('the agent has no HTTP')
  await moveLayers(report, http, registry.url)
  await pullSmall(report, http, registry.url)
}

async function moveLayers(report: Report, agentUrl: string, registryUrl: string): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), 'undernet-layer-'))
  try {
    const file = join(directory, 'layer')
    await writeRandomFile(file, LAYER_BYTES, 1)
    const moved = {
      agent: { push: [] as number[], pull: [] as number[] },
      docker: { push: [] as number[], pull: [] as number[] },
    }
    const move = (who: keyof typeof moved, url: string) => async (turn: number) => {
      const digest = await changed(file, who === 'agent' ? 2 * turn : 2 * turn + 1)
      const push = await timed(() => pushFile(url, file, digest))
      const pull = await timed(() => pullBlob(url, digest))
      if (turn >= 0) {
        moved[who].push.push(push)
        moved[who].pull.push(pull)
      }
      await asked('DELETE', `${url}/v2/${REPOSITORY}/blobs/${digest}`)
      return push + pull
    }
    const samples = await byTurns({ agent: move('agent', agentUrl), docker: move('docker', registryUrl) }, LAYER_TURNS)
    const against = (list: readonly number[]) => ({ what: 'docker-registry', samples: list })
    const parts = { unit: 'ms' } as const
    report.result({
      ...parts,
      what: 'push and pull',
      samples: samples.agent,
      against: against(samples.docker),
      goal: { timesAtMost: 1.25 },
    })
    report.result({ ...parts, what: 'push', samples: moved.agent.push, against: against(moved.docker.push) })
    report.result({ ...parts, what: 'pull', samples: moved.agent.pull, against: against(moved.docker.pull) })
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}

async function pullSmall(report: Report, agentUrl: string, registryUrl: string): Promise<void> {
  for (const url of [agentUrl, registryUrl]) for (let image = 0; image < PULLS; image++) await pushSmall(url, image)
  const p99 = (url: string) => async () => {
    using client = new PullClient(url)
    return quantile(await Promise.all(Array.from({ length: PULLS }, (_, image) => client.pull(image))), 0.99)
  }
  const samples = await byTurns({ agent: p99(agentUrl), docker: p99(registryUrl) }, PULL_TURNS)
  report.result({
    what: `${PULLS} small pulls at once, p99`,
    samples: samples.agent,
    unit: 'ms',
    against: { what: 'docker-registry', samples: samples.docker },
    goal: { timesAtMost: 1.5 },
  })
}

/** As any client pulls: the manifest by its tag, then what it names. */
class PullClient implements Disposable {
  readonly #url: string
  readonly #agent = new Agent({ keepAlive: true, maxSockets: PULLS })

  constructor(url: string) {
    this.#url = url
  }

  /** Milliseconds that it took. */
  async pull(image: number): Promise<number> {
    return await timed(async () => {
      const manifest = JSON.parse((await this.#get(`manifests/small-${image}`)).toString()) as Manifest
      for (const { digest } of [manifest.config, ...manifest.layers]) await this.#get(`blobs/${digest}`)
    })
  }

  [Symbol.dispose](): void {
    this.#agent.destroy()
  }

  #get(path: string): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      const headers = { accept: OCI_MANIFEST }
      get(`${this.#url}/v2/${REPOSITORY}/${path}`, { agent: this.#agent, headers }, (answer) => {
        const chunks: Buffer[] = []
        answer.on('data', (chunk: Buffer) => chunks.push(chunk))
        answer.once('error', reject)
        answer.once('end', () => {
          if (answer.statusCode === 200) resolve(Buffer.concat(chunks))
          else reject(new Error(`${path}: ${answer.statusCode}`))
        })
      }).once('error', reject)
    })
  }
}

type Manifest = { config: { digest: string }; layers: { digest: string }[] }

async function pushSmall(url: string, image: number): Promise<void> {
  const random = new Random(1_000 + image)
  const [config, layer] = [Buffer.from(JSON.stringify({ image })), random.bytes(SMALL_LAYER_BYTES)]
  const descriptor = (bytes: Buffer, mediaType: string) => ({
    mediaType,
    digest: digestOf(bytes),
    size: bytes.byteLength,
  })
  for (const bytes of [config, layer]) {
    const place = await began(url)
    await asked('PUT', withDigest(place, digestOf(bytes)), bytes)
  }
  const manifest = {
    schemaVersion: 2,
    mediaType: OCI_MANIFEST,
    config: descriptor(config, 'application/vnd.oci.image.config.v1+json'),
    layers: [descriptor(layer, 'application/vnd.oci.image.layer.v1.tar')],
  }
  const bytes = Buffer.from(JSON.stringify(manifest))
  await asked('PUT', `${url}/v2/${REPOSITORY}/manifests/small-${image}`, bytes, { 'content-type': OCI_MANIFEST })
}

/** By curl, which costs as little as a client can; streamed, as podman and skopeo do. */
async function pushFile(url: string, file: string, digest: string): Promise<void> {
  const place = await began(url)
  const { stdout } = await curl('-X', 'PATCH', '-T', file, '-H', 'Expect:', '-D', '-', '-o', '/dev/null', place)
  const next = /^location: (\S+)/im.exec(stdout)?.[1]
  if (next === undefined) throw new Error(`PATCH ${place}: ${stdout}`)
  await asked('PUT', withDigest(new URL(next, url).href, digest))
}

async function pullBlob(url: string, digest: string): Promise<void> {
  const { stdout } = await curl('-o', '/dev/null', '-w', '%{size_download}', `${url}/v2/${REPOSITORY}/blobs/${digest}`)
  if (Number(stdout) !== LAYER_BYTES) throw new Error(`${digest}: ${stdout} bytes`)
}

async function began(url: string): Promise<string> {
  const { location } = await asked('POST', `${url}/v2/${REPOSITORY}/blobs/uploads/`)
  return new URL(location ?? '', url).href
}

function withDigest(place: string, digest: string): string {
  const url = new URL(place)
  url.searchParams.set('digest', digest)
  return url.href
}

async function asked(
  method: string,
  url: string,
  body: Uint8Array = Buffer.alloc(0),
  headers: Record<string, string> = {},
) {
  return await new Promise<{ location: string | undefined }>((resolve, reject) => {
    const length = { 'content-length': body.byteLength }
    const asking = request(url, { method, headers: { ...headers, ...length } }, (answer) => {
      answer.resume()
      const { statusCode = 0 } = answer
      answer.once('end', () => {
        if (statusCode < 300) resolve({ location: answer.headers.location })
        else reject(new Error(`${method} ${url}: ${statusCode}`))
      })
    })
    asking.once('error', reject)
    asking.end(body)
  })
}

async function curl(...args: string[]): Promise<{ stdout: string }> {
  return await promisify(execFile)('curl', ['-sS', '--fail', ...args])
}

/** Another layer, with its digest. */
async function changed(file: string, number: number): Promise<string> {
  const handle = await open(file, 'r+')
  try {
    await handle.write(Buffer.from(`layer ${number}\n`), 0)
  } finally {
    await handle.close()
  }
  const hash = createHash('sha256')
  for await (const chunk of createReadStream(file, { highWaterMark: 1024 * 1024 })) hash.update(chunk as Buffer)
  return `sha256:${hash.digest('hex')}`
}

function digestOf(bytes: Buffer): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`
}
