/** An AgentApi with known answers, for tests of the API and the command line; each method can be replaced. */
import { createHash } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import type { AgentApi } from '../../../agent/api/agent-api.ts'
import type { BlobReader } from '../../../agent/api/blob-reader.ts'
import type { ArtifactDetail, ArtifactView, PeerView, Status } from '../../../agent/api/contract.ts'
import { ApiServer } from '../../../agent/api/server.ts'
import { AgentError } from '../../../agent/error.ts'
import { fakeImages } from './fake-images.ts'
import { fakeMembership } from './fake-membership.ts'
import { fakeNames } from './fake-names.ts'
import { fakeNetcheck } from './fake-netcheck.ts'
import { fakeRoom } from './fake-room.ts'
import { fakeServices } from './fake-services.ts'
import { fakeShare } from './fake-share.ts'
import { fakeUpkeep } from './fake-upkeep.ts'

const PEER_ID = '12D3KooWEZXjE41uU4EL2gpkAQeDXYok6wghN7wwNVPF5bwkaNfS'
export const OTHER_PEER_ID = '12D3KooWJbJFaZ1dwpuu9tQY3ELCKCpWMJc1dSRVbcMwhiLiFq7q'

export const peer: PeerView = {
  peerId: OTHER_PEER_ID,
  name: 'pear',
  address: `/ip4/192.0.2.7/tcp/7477/p2p/${OTHER_PEER_ID}`,
  path: 'direct',
  relay: null,
  direction: 'out',
  rttMs: 1.25,
  connectedSeconds: 3_700,
  networks: ['open'],
}

export const artifact: ArtifactView = {
  cid: 'bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy',
  network: 'open',
  name: 'hello',
  type: 'file',
  description: 'says hello',
  sizeBytes: 5_000_000,
  publisher: { peerId: OTHER_PEER_ID, name: 'pear' },
  own: false,
  issued: '2026-01-01T00:00:00.000Z',
  expires: '2026-01-31T00:00:00.000Z',
}

export const status: Status = {
  version: '0.1.0',
  peerId: PEER_ID,
  name: 'apple',
  uptimeSeconds: 11_530,
  listen: ['/ip4/192.0.2.1/tcp/7477'],
  http: 'http://127.0.0.1:7478',
  networks: [{ id: 'ab'.repeat(32), name: 'open', kind: 'open', nodes: 2 }],
  peers: [peer],
  artifacts: { own: 1, known: 3 },
  content: {
    pathsShared: 51,
    blobs: 7,
    bytes: 1_300_000_000,
    quotaBytes: 20 * 2 ** 30,
    hits: 51,
    misses: 3,
    fetchedBytes: 400_000,
    servedBytes: 0,
    lanes: { port: 7_476, fetchedBytes: 300_000, servedBytes: 0 },
  },
  services: [],
  instances: [],
  warnings: [],
}

export function digestOf(bytes: Uint8Array | string): string {
  return createHash('sha256').update(bytes).digest('hex')
}

export function blobOf(bytes: Buffer): BlobReader {
  return {
    sizeBytes: bytes.byteLength,
    async *read(offset, length) {
      yield bytes.subarray(offset, offset + length)
    },
  }
}

export function fakeAgent(replaced: Partial<AgentApi> = {}): AgentApi {
  const detail: ArtifactDetail = { ...artifact, holders: [{ peerId: OTHER_PEER_ID, name: 'pear', connected: true }] }
  return {
    membership: fakeMembership(),
    room: fakeRoom(),
    sharing: fakeShare(),
    routing: fakeServices(),
    names: fakeNames,
    netcheck: fakeNetcheck(),
    images: fakeImages(),
    status: () => status,
    peers: () => [peer],
    ping: async () => ({ peerId: OTHER_PEER_ID, name: 'pear', address: peer.address, path: 'direct', rttMs: 0.4 }),
    publishStorePath: async ({ storePath }) => ({
      artifact: { ...artifact, type: 'nix', root: storePath, pathCount: 51, own: true },
      announcedTo: 1,
    }),
    publishUpload: async ({ name, type }, bytes) => {
      let sizeBytes = 0
      for await (const chunk of bytes) sizeBytes += chunk.byteLength
      return { artifact: { ...artifact, name, type, sizeBytes, own: true }, announcedTo: 0 }
    },
    unpublish: () => artifact,
    search: () => ({ artifacts: [artifact], truncated: false }),
    artifact: () => detail,
    fetch: async () => ({ artifact, parts: [] }),
    blob: async () => undefined,
    trustedKeys: () => [{ name: 'apple-1', key: 'apple-1:a2V5', origin: 'own' }],
    trust: (key) => ({ name: key.split(':')[0] ?? '', key, origin: 'added' }),
    distrust: (key) => ({ name: key, key: `${key}:a2V5`, origin: 'added' }),
    nixConf: () => ({
      url: 'http://127.0.0.1:7478/nix',
      publicKey: 'apple-1:a2V5',
      lines: ['extra-substituters = http://127.0.0.1:7478/nix', 'extra-trusted-public-keys = apple-1:a2V5'],
    }),
    config: () => ({ file: null, entries: [{ key: 'name', value: 'apple', origin: 'flag', source: '--name' }] }),
    upkeep: fakeUpkeep,
    ...replaced,
  }
}

export const notFound = new AgentError('not-found', 'nothing is called nope', { next: 'See `agent search`.' })

/** A server on a socket of its own, gone with its directory when disposed. */
export async function serve(replaced: Partial<AgentApi> = {}) {
  const directory = mkdtempSync(join(tmpdir(), 'undernet-api-'))
  const socket = join(directory, 'agent.sock')
  const server = await ApiServer.start({
    socket,
    mode: 0o600,
    api: fakeAgent(replaced),
    log: pino({ level: 'silent' }),
  })
  return {
    socket,
    directory,
    server,
    async [Symbol.asyncDispose]() {
      await server[Symbol.asyncDispose]()
      rmSync(directory, { recursive: true, force: true })
    },
  }
}
