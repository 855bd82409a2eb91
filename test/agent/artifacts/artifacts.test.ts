/** Publishing and bringing artifacts: what is stored, pinned, announced, and what a kill in between leaves. */
import { createHash, randomBytes } from 'node:crypto'
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { CID } from 'multiformats/cid'
import { pino } from 'pino'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { bringArtifact } from '../../../agent/artifacts/bring.ts'
import { Publications, type PublicationsDeps } from '../../../agent/artifacts/publications.ts'
import { storeUpload } from '../../../agent/artifacts/upload.ts'
import { Artifacts } from '../../../agent/catalog/artifacts.ts'
import { Nodes } from '../../../agent/catalog/nodes.ts'
import { Records } from '../../../agent/catalog/records.ts'
import { BlobIndex } from '../../../agent/content/blob-index.ts'
import { Blobs } from '../../../agent/content/blobs.ts'
import { type BlobFetcher, TEMPORARY_PIN } from '../../../agent/content/content.ts'
import { Holdings } from '../../../agent/content/holdings.ts'
import { PieceLists } from '../../../agent/content/piece-lists.ts'
import { OPEN_NETWORK_ID } from '../../../agent/content/publication-key.ts'
import { AgentError } from '../../../agent/error.ts'
import { ephemeralNodeKey } from '../../../agent/identity/node-key.ts'
import { type Database, openDatabase } from '../../../agent/state/database.ts'
import { encodeManifest, fileCid, manifestCid } from '../../../protocols/artifact/artifact.ts'
import { layoutNar } from '../../../protocols/nar/write.ts'
import { OPEN_NETWORK } from '../../../protocols/records/record.ts'

const log = pino({ level: 'silent' })
const signal = new AbortController().signal
const signer = ephemeralNodeKey()
let directory: string
let db: Database | undefined
let closedDb: Database | undefined
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'undernet-artifacts-'))
})
afterEach(() => {
  for (const one of [db, closedDb]) one?.close()
  db = closedDb = undefined
  rmSync(directory, { recursive: true, force: true })
})

/** The parts as a start of the agent makes them, on the same state each time. */
function start() {
  db?.close()
  db = openDatabase(join(directory, 'state.db'))
  const blobs = Blobs.open({
    directory: join(directory, 'blobs'),
    index: new BlobIndex(db),
    lists: new PieceLists(db),
    quotaBytes: 64 * 1024 * 1024,
    log,
  })
  const records = new Records(db, { network: OPEN_NETWORK, signer, log })
  const artifacts = new Artifacts({ db, records, nodes: new Nodes(records) })
  const provided = new Set<string>()
  const shared = new Map<string, number>()
  const deps: PublicationsDeps = {
    network: OPEN_NETWORK_ID,
    artifacts,
    pins: blobs,
    paths: {
      publish: (name, { paths }) => void shared.set(name, paths.length),
      withdraw: (name) => void shared.delete(name),
    },
    providers: { provide: (cid) => void provided.add(cid), withdraw: (cid) => void provided.delete(cid) },
  }
  return { blobs, artifacts, provided, shared, deps, publications: new Publications(deps) }
}

async function* once(bytes: Uint8Array) {
  yield bytes
}

const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex')
const pinsOf = (blobs: Blobs) => blobs.pinReasons('')

async function narOfFolder(): Promise<Buffer> {
  const folder = join(directory, 'folder')
  mkdirSync(join(folder, 'bin'), { recursive: true })
  writeFileSync(join(folder, 'bin', 'run'), '#!/bin/sh\n', { mode: 0o755 })
  symlinkSync('bin/run', join(folder, 'link'))
  const layout = await layoutNar(folder)
  return Buffer.concat(await Array.fromAsync(layout.read(0, layout.sizeBytes, signal)))
}

describe('an upload', () => {
  it('of a file becomes a blob whose hash is its CID', async () => {
    const { blobs } = start()
    const bytes = randomBytes(300_000)
    const upload = { type: 'file', name: 'a.bin', description: 'd' } as const
    const { body, blobs: digests } = await storeUpload(upload, once(bytes), blobs, 'p', signal)
    expect(digests).toEqual([sha256(bytes)])
    expect(body).toMatchObject({ type: 'file', sizeBytes: 300_000, description: 'd' })
    expect(body.cid.equals(fileCid(sha256(bytes)))).toBe(true)
    expect(pinsOf(blobs)).toEqual(['p'])
  })

  it('of a folder is kept as its NAR, with a manifest', async () => {
    const { blobs } = start()
    const nar = await narOfFolder()
    const upload = { type: 'folder', name: 'f', description: '' } as const
    const { body, blobs: digests } = await storeUpload(upload, once(nar), blobs, 'p', signal)
    expect(digests[0]).toBe(sha256(nar))
    expect(body.sizeBytes).toBe(nar.byteLength)
    const manifest = { v: 1, type: 'folder', nar: Buffer.from(sha256(nar), 'hex'), sizeBytes: nar.byteLength } as const
    expect(body.cid.equals(manifestCid(encodeManifest(manifest)))).toBe(true)
  })

  it('of a folder that is no NAR is refused, and so is a name that nobody could type', async () => {
    const { blobs } = start()
    const store = (name: string, bytes: Uint8Array) =>
      storeUpload({ type: 'folder', name, description: '' }, once(bytes), blobs, 'p', signal)
    await expect(store('f', Buffer.from('not a nar'))).rejects.toMatchObject({ code: 'usage' })
    await expect(store('../f', await narOfFolder())).rejects.toMatchObject({ code: 'usage' })
  })
})

describe('publications', () => {
  const file = (bytes: Uint8Array, description = '') => ({
    type: 'file' as const,
    cid: fileCid(sha256(bytes)),
    sizeBytes: bytes.byteLength,
    description,
  })

  it('announce, pin and provide together, and take back together', async () => {
    const { blobs, publications, provided, artifacts } = start()
    const bytes = randomBytes(100)
    const { digest } = await blobs.write(undefined, [bytes], signal, { pin: 'mine' })
    const body = file(bytes)
    publications.publish({ name: 'a', body, blobs: [digest] })
    expect(pinsOf(blobs)).toEqual(['artifact:a', 'mine'])
    expect([...provided]).toEqual([body.cid.toString()])
    expect(publications.withdraw('a').map(({ name }) => name)).toEqual(['a'])
    expect(pinsOf(blobs)).toEqual(['mine'])
    expect(provided.size).toBe(0)
    expect(artifacts.own()).toEqual([])
    expect(() => publications.withdraw('a')).toThrow(AgentError)
  })

  it('replace what had the name before, and let go of its content', async () => {
    const { blobs, publications, provided } = start()
    const versions = [randomBytes(10), randomBytes(20)]
    for (const bytes of versions) {
      const { digest } = await blobs.write(undefined, [bytes], signal)
      publications.publish({ name: 'a', body: file(bytes), blobs: [digest] })
    }
    expect([...provided]).toEqual([file(versions[1] as Buffer).cid.toString()])
    expect(blobs.index.pins(sha256(versions[0] as Buffer))).toEqual([])
    expect(blobs.index.pins(sha256(versions[1] as Buffer))).toEqual(['artifact:a'])
  })

  it('go on providing content that is published under a second name', async () => {
    const { blobs, publications, provided } = start()
    const bytes = randomBytes(10)
    const { digest } = await blobs.write(undefined, [bytes], signal)
    for (const name of ['a', 'b']) publications.publish({ name, body: file(bytes), blobs: [digest] })
    publications.withdraw('a')
    expect(provided.size).toBe(1)
    expect(blobs.index.pins(digest)).toEqual(['artifact:b'])
  })

  it('are provided again after a restart, and what a kill left half done is let go', async () => {
    const first = start()
    const bytes = randomBytes(10)
    const { digest } = await first.blobs.write(undefined, [bytes], signal)
    first.publications.publish({ name: 'a', body: file(bytes), blobs: [digest] })
    // Killed between pinning and announcing; and in the middle of a get.
    first.blobs.setPins('artifact:half', [digest])
    first.blobs.pin(digest, `${TEMPORARY_PIN}get`)
    const second = start()
    expect([...second.provided]).toEqual([file(bytes).cid.toString()])
    expect(pinsOf(second.blobs)).toEqual(['artifact:a'])
  })
})

describe('publications in two networks', () => {
  const CLOSED = 'c1'.repeat(32)
  const manifest = { root: 0, paths: [] }

  /** Those of a closed network beside those of the open one, on the same blobs and shared paths. */
  function startBoth() {
    const open = start()
    closedDb?.close()
    closedDb = openDatabase(join(directory, 'closed.db'))
    const records = new Records(closedDb, { network: Buffer.from(CLOSED, 'hex'), signer, log })
    const artifacts = new Artifacts({ db: closedDb, records, nodes: new Nodes(records) })
    const { pins, paths } = open.deps
    return { open, closed: new Publications({ network: CLOSED, artifacts, pins, paths }) }
  }

  async function publishBoth({ open, closed }: ReturnType<typeof startBoth>, bytes: Buffer) {
    const { digest } = await open.blobs.write(undefined, [bytes], signal, { pin: `${TEMPORARY_PIN}1` })
    const body = { type: 'file' as const, cid: fileCid(digest), sizeBytes: bytes.byteLength, description: '' }
    for (const each of [open.publications, closed]) each.publish({ name: 'a', body, blobs: [digest], manifest })
    open.blobs.setPins(`${TEMPORARY_PIN}1`, [])
    return digest
  }

  it('hold the same content each by itself: one may be withdrawn, and the other stays', async () => {
    const both = startBoth()
    const { open, closed } = both
    const digest = await publishBoth(both, randomBytes(10))
    expect(open.blobs.networksOf(digest)).toEqual(new Set([OPEN_NETWORK_ID, CLOSED]))
    expect([...open.shared.keys()]).toEqual(['a', `${CLOSED}/a`])
    open.publications.withdraw('a')
    expect(open.blobs.networksOf(digest)).toEqual(new Set([CLOSED]))
    expect([...open.shared.keys()]).toEqual([`${CLOSED}/a`])
    expect(() => open.publications.withdraw('a')).toThrow(AgentError)
    closed.withdraw('a')
    expect(open.blobs.has(digest)).toBe(false)
    expect(open.shared.size).toBe(0)
  })

  it('are put right after a kill, each those of its network', async () => {
    const first = startBoth()
    const digest = await publishBoth(first, randomBytes(10))
    for (const key of ['half', `${CLOSED}/half`]) first.open.blobs.setPins(`artifact:${key}`, [digest])
    const { open } = startBoth()
    expect(pinsOf(open.blobs)).toEqual(['artifact:a', `artifact:${CLOSED}/a`])
  })

  it('tell strangers nothing of what is published in a closed one', async () => {
    const { open, closed } = startBoth()
    const bytes = randomBytes(10)
    const { digest } = await open.blobs.write(undefined, [bytes], signal)
    const body = { type: 'file' as const, cid: fileCid(digest), sizeBytes: 10, description: '' }
    closed.publish({ name: 'a', body, blobs: [digest] })
    expect(open.provided.size).toBe(0)
    expect(open.artifacts.own()).toEqual([])
    expect(open.blobs.networksOf(digest)).toEqual(new Set([CLOSED]))
  })
})

describe('bringing an artifact', () => {
  /** Peers, as far as the fetcher shows them: a map of blobs. */
  function fetcherOf(blobs: Blobs, remote: Map<string, Uint8Array>, fetched: string[]): Pick<BlobFetcher, 'fetch'> {
    return {
      async fetch(digest, { pin, onProgress, signal: aborted }) {
        aborted.throwIfAborted()
        const bytes = remote.get(digest)
        if (!bytes) throw new AgentError('not-found', `nobody has ${digest}`)
        fetched.push(digest)
        await blobs.write(digest, [bytes], signal, pin === undefined ? {} : { pin })
        onProgress?.(bytes.byteLength, bytes.byteLength)
      },
    }
  }
  const bring = async (cid: CID, remote: Map<string, Uint8Array>) => {
    const { blobs } = start()
    const fetched: string[] = []
    const progress: [number, number][] = []
    const deps = {
      blobs,
      holdings: new Holdings([blobs]),
      fetcher: fetcherOf(blobs, remote, fetched),
      network: OPEN_NETWORK_ID,
      sources: async function* () {},
      onProgress: (done: number, total: number) => void progress.push([done, total]),
    }
    const brought = await bringArtifact(cid, deps, signal).catch((error: unknown) => error)
    return { brought, fetched, progress, pins: pinsOf(blobs) }
  }

  it('asks in the network that it is brought from only', async () => {
    const { blobs } = start()
    const bytes = randomBytes(50)
    const closed = 'c1'.repeat(32)
    const networks: string[] = []
    const deps = {
      blobs,
      holdings: new Holdings([blobs]),
      fetcher: {
        fetch: async (digest: string, { network, sources, pin }: Parameters<BlobFetcher['fetch']>[1]) => {
          networks.push(network, ...(await Array.fromAsync(sources)))
          await blobs.write(digest, [bytes], signal, pin === undefined ? {} : { pin })
        },
      },
      network: closed,
      sources: async function* (_cid: CID, network: string) {
        yield `peer of ${network}`
      },
      onProgress: () => undefined,
    }
    await bringArtifact(fileCid(sha256(bytes)), deps, signal)
    expect(networks).toEqual([closed, `peer of ${closed}`])
  })

  it('fetches a file by its hash', async () => {
    const bytes = randomBytes(50)
    const { brought, pins } = await bring(fileCid(sha256(bytes)), new Map([[sha256(bytes), bytes]]))
    expect(brought).toEqual({ type: 'file', parts: [{ digest: sha256(bytes), sizeBytes: 50, kind: 'file' }] })
    expect(pins).toEqual([])
  })

  it('fetches every NAR of a closure, adds up their progress, and not again what is here', async () => {
    const nars = [randomBytes(10), randomBytes(20)]
    const paths = nars.map((nar, at) => ({
      path: `/nix/store/${'0123456789abcdfghijklmnpqrsvwxyz'.slice(at, at + 1).repeat(32)}-p`,
      nar: Buffer.from(sha256(nar), 'hex'),
      sizeBytes: nar.byteLength,
      references: [],
    }))
    const manifest = encodeManifest({ v: 1, type: 'closure', root: 0, paths })
    const remote = new Map([manifest, ...nars].map((bytes) => [sha256(bytes), bytes]))
    const { brought, progress, fetched } = await bring(manifestCid(manifest), remote)
    const parts = paths.map(({ path }, at) => {
      const nar = nars[at] as Buffer
      return { digest: sha256(nar), sizeBytes: nar.byteLength, kind: 'nar', path }
    })
    expect(brought).toEqual({ type: 'nix', root: paths[0]?.path, parts })
    expect(progress.at(-1)).toEqual([30, 30])
    expect(fetched.length).toBe(3)
    expect((await bring(manifestCid(manifest), remote)).fetched).toEqual([])
  })

  it('lets its pins go when a part is missing, and says which', async () => {
    const nar = randomBytes(10)
    const manifest = encodeManifest({ v: 1, type: 'folder', nar: Buffer.from(sha256(nar), 'hex'), sizeBytes: 10 })
    const { brought, pins } = await bring(manifestCid(manifest), new Map([[sha256(manifest), manifest]]))
    expect(brought).toMatchObject({ code: 'not-found', message: `nobody has ${sha256(nar)}` })
    expect(pins).toEqual([])
  })

  it('refuses a manifest that is none, however right its hash', async () => {
    const rubbish = randomBytes(100)
    const { brought } = await bring(manifestCid(rubbish), new Map([[sha256(rubbish), rubbish]]))
    expect(brought).toMatchObject({ code: 'corrupt', message: expect.stringContaining('cannot be used') })
  })
})
