/**
 * Eight nodes of a network pull one image at once, which is in a registry behind a narrow line: how much does the registry send, and how long does it take
 * until all are done? Real agents in processes of their own and Debian's docker-registry, on loopback; the line is one process that lets 20 MB/s through. What
 * counts are the copies, and the time against one agent that is in no network.
 */
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createReadStream, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { get, type IncomingMessage } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Bundle, RealAgent, until } from '../test/agents.ts'
import { MANIFEST_TYPE, WayToRegistry } from '../test/images.ts'
import { DockerRegistry } from './docker-registry.ts'
import { type Bench, isQuick, type Report, timed } from './harness.ts'
import { writeRandomFile } from './random.ts'

/** Of the image, in MiB: one large layer, as most have. */
const LAYERS_MIB = isQuick ? [200, 80, 40] : [320, 128, 64]
const NODES = 8
const RATE_BYTES = 20_000_000
const TURNS = isQuick ? 1 : 3
const MIB = 2 ** 20
const IMAGE_MIB = LAYERS_MIB.reduce((sum, size) => sum + size, 0)
const LAYER_TYPE = 'application/vnd.oci.image.layer.v1.tar+gzip'
const CONFIG_TYPE = 'application/vnd.oci.image.config.v1+json'

export const bench: Bench = {
  name: 'image-crowd',
  question: `Of an image of ${IMAGE_MIB} MiB that ${NODES} nodes pull at once, how much does the registry upstream send, at ${RATE_BYTES / 1e6} MB/s?`,
  minutesMax: 20,
  run,
}

type Pulled = { seconds: number; copies: number; cpuSeconds: number }

async function run(report: Report, signal: AbortSignal): Promise<void> {
  await using stack = new AsyncDisposableStack()
  const registry = await DockerRegistry.start()
  if (registry === undefined) return report.note('docker-registry is not installed: there is nothing to pull from.')
  stack.use(registry)
  const way = stack.use(await WayToRegistry.open(registry.url, { rateBytes: RATE_BYTES }))
  const bundle = stack.use(await Bundle.build())
  const flags = ['--no-open', '--registries', `${way.url}?prefix=docker.io`]
  const start = (name: string, bootstrap: string[] = []) =>
    RealAgent.start({ name, entry: bundle.entry, env: bundle.env, flags, bootstrap })
  const nodes = await network(start, stack)
  const alone: Pulled[] = []
  const together: Pulled[] = []
  for (let turn = 0; turn < TURNS; turn++) {
    {
      await using one = await start('alone')
      await push(registry.url, `crowd/alone:${turn}`, 2 * turn + 1)
      alone.push(await pull([one], `crowd/alone:${turn}`, way, signal))
    }
    await push(registry.url, `crowd/all:${turn}`, 2 * turn + 2)
    together.push(await pull(nodes, `crowd/all:${turn}`, way, signal))
    const [one, all] = [alone.at(-1), together.at(-1)]
    report.progress(
      `one ${one?.seconds.toFixed(1)} s; ${NODES} at once ${all?.seconds.toFixed(1)} s, ${all?.copies.toFixed(2)} copies, ${all?.cpuSeconds.toFixed(1)} s of CPU`,
    )
  }
  report.result({
    what: `sent by the registry, ${NODES} nodes`,
    samples: together.map(({ copies }) => copies),
    unit: 'copies',
    goal: { atMost: 1.2 },
  })
  report.result({
    what: `until all have the image, against one alone`,
    samples: together.map(({ seconds }, turn) => seconds / (alone[turn]?.seconds ?? Number.NaN)),
    unit: 'x',
    goal: { atMost: 1.5 },
  })
}

/** Eight members of one network, each connected to some others. */
async function network(
  start: (name: string, bootstrap?: string[]) => Promise<RealAgent>,
  stack: AsyncDisposableStack,
): Promise<RealAgent[]> {
  const first = stack.use(await start('node-0'))
  await first.json('network', 'create', 'crowd')
  const { stdout: token } = await first.run('invite', '--uses', String(NODES))
  const file = join(first.state, 'token')
  writeFileSync(file, token, { mode: 0o600 })
  const bootstrap = [await first.address()]
  const others: RealAgent[] = []
  for (let nth = 1; nth < NODES; nth++) {
    const agent = stack.use(await start(`node-${nth}`, bootstrap))
    await agent.json('join', '--file', file)
    others.push(agent)
  }
  const nodes = [first, ...others]
  const connected = async () =>
    (await Promise.all(nodes.map((one) => one.status()))).every((one) => one.peers.length >= 3)
  await until(connected, { what: 'the nodes are connected', ms: 60_000 })
  return nodes
}

/** All pull at once, as clients do: the manifest, then all layers together. */
async function pull(
  agents: readonly RealAgent[],
  image: string,
  way: WayToRegistry,
  signal: AbortSignal,
): Promise<Pulled> {
  const before = way.sentBytes
  const cpuBefore = cpuOf(agents)
  const [path, tag] = image.split(':')
  const pullOn = async (agent: RealAgent) => {
    const url = `${(await agent.status()).http}/v2/docker.io/${path}`
    const answer = await fetch(`${url}/manifests/${tag}`, { signal, headers: { accept: MANIFEST_TYPE } })
    if (!answer.ok) throw new Error(`${agent.name}: HTTP ${answer.status} ${await answer.text()}`)
    const { layers } = (await answer.json()) as { layers: { digest: string; size: number }[] }
    await Promise.all(layers.map(({ digest }) => readBlob(`${url}/blobs/${digest}`, digest, signal)))
  }
  const ms = await timed(() => Promise.all(agents.map(pullOn)))
  const cpuSeconds = cpuOf(agents) - cpuBefore
  return { seconds: ms / 1_000, copies: (way.sentBytes - before) / (IMAGE_MIB * MIB), cpuSeconds }
}

function cpuOf(agents: readonly RealAgent[]): number {
  return agents.reduce((sum, agent) => sum + agent.cpuSeconds, 0)
}

/** As a client does; by plain HTTP, since what the standard fetch costs is not what is asked here. */
async function readBlob(url: string, digest: string, signal: AbortSignal): Promise<void> {
  const asked = get(url, { signal })
  const [answer] = (await once(asked, 'response')) as [IncomingMessage]
  const hasher = createHash('sha256')
  for await (const chunk of answer) hasher.update(chunk as Buffer)
  if (answer.statusCode !== 200) throw new Error(`${url}: HTTP ${answer.statusCode}`)
  if (`sha256:${hasher.digest('hex')}` !== digest) throw new Error(`${url} has another digest`)
}

/** Another image for each seed: what a node has it does not fetch. */
async function push(url: string, image: string, seed: number): Promise<void> {
  const [path, tag] = image.split(':')
  const directory = mkdtempSync(join(tmpdir(), 'undernet-crowd-'))
  try {
    const layers = []
    for (const [nth, size] of LAYERS_MIB.entries()) {
      const file = join(directory, String(nth))
      await writeRandomFile(file, size * MIB, seed * 100 + nth)
      const hasher = createHash('sha256')
      for await (const chunk of createReadStream(file)) hasher.update(chunk as Buffer)
      const digest = `sha256:${hasher.digest('hex')}`
      await putBlob(`${url}/v2/${path}`, digest, createReadStream(file))
      layers.push({ mediaType: LAYER_TYPE, digest, size: size * MIB })
    }
    const config = Buffer.from(
      JSON.stringify({ os: 'linux', architecture: 'amd64', rootfs: { type: 'layers', diff_ids: [] } }),
    )
    const digest = `sha256:${createHash('sha256').update(config).digest('hex')}`
    await putBlob(`${url}/v2/${path}`, digest, config)
    const manifest = {
      schemaVersion: 2,
      mediaType: MANIFEST_TYPE,
      config: { mediaType: CONFIG_TYPE, digest, size: config.byteLength },
      layers,
    }
    const headers = { 'content-type': MANIFEST_TYPE }
    const answer = await fetch(`${url}/v2/${path}/manifests/${tag}`, {
      method: 'PUT',
      headers,
      body: JSON.stringify(manifest),
    })
    if (!answer.ok) throw new Error(`the manifest is not taken: HTTP ${answer.status}`)
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}

async function putBlob(url: string, digest: string, bytes: NodeJS.ReadableStream | Uint8Array): Promise<void> {
  const begun = await fetch(`${url}/blobs/uploads/`, { method: 'POST' })
  const place = new URL(begun.headers.get('location') ?? '', url)
  place.searchParams.set('digest', digest)
  const answer = await fetch(place, {
    method: 'PUT',
    headers: { 'content-type': 'application/octet-stream' },
    body: bytes as never,
    duplex: 'half',
  } as RequestInit)
  if (!answer.ok) throw new Error(`the blob is not taken: HTTP ${answer.status} ${await answer.text()}`)
}
