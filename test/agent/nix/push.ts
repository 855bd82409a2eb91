/** An agent's side of a push, with real blobs and without a network: what is published is noted. */
import { createHash } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { zstdCompressSync } from 'node:zlib'
import { type FastifyInstance, fastify } from 'fastify'
import { BlobIndex } from '../../../agent/content/blob-index.ts'
import { Blobs } from '../../../agent/content/blobs.ts'
import { PieceLists } from '../../../agent/content/piece-lists.ts'
import { PUBLICATION_PIN, publicationKey } from '../../../agent/content/publication-key.ts'
import { AgentError } from '../../../agent/error.ts'
import { HeldPaths } from '../../../agent/nix/held-paths.ts'
import { formatNarinfo } from '../../../agent/nix/narinfo.ts'
import type { NixStore, PathInfo } from '../../../agent/nix/nix-store.ts'
import { encodeNix32 } from '../../../agent/nix/nix32.ts'
import { registerPushRoutes } from '../../../agent/nix/push-routes.ts'
import { Pushes, type PushPlace } from '../../../agent/nix/pushes.ts'
import { SideFiles } from '../../../agent/nix/side-files.ts'
import { CacheKey } from '../../../agent/nix/signing.ts'
import { TrustedKeys } from '../../../agent/nix/trust.ts'
import { openDatabase } from '../../../agent/state/database.ts'
import { memoryLog } from './peers.ts'

export const HOME = 'ab'.repeat(32)
type Published = Parameters<PushPlace['publish']>[0]

export class PushedTo implements AsyncDisposable {
  readonly directory = mkdtempSync(join(tmpdir(), 'undernet-push-'))
  readonly db = openDatabase(':memory:')
  readonly log = memoryLog()
  readonly key = CacheKey.ephemeral('here')
  readonly blobs: Blobs
  readonly held: HeldPaths
  readonly trust: TrustedKeys
  readonly sideFiles: SideFiles
  readonly server: FastifyInstance = fastify()
  /** By name. */
  readonly published = new Map<string, Published>()
  /** Paths that can be had elsewhere. */
  readonly elsewhere = new Map<string, PathInfo>()
  refusal: string | undefined
  pushes: Pushes
  readonly #store: NixStore

  constructor(store: NixStore, { quotaBytes = 2 ** 30 } = {}) {
    this.#store = store
    const log = this.log
    const index = new BlobIndex(this.db)
    this.blobs = Blobs.open({ directory: this.directory, index, lists: new PieceLists(this.db), quotaBytes, log })
    this.held = new HeldPaths(this.db, store.directory)
    this.trust = new TrustedKeys(this.db, this.key.publicKey, [])
    this.sideFiles = new SideFiles({ db: this.db, blobs: this.blobs, logDirectory: '/nonexistent' })
    this.pushes = this.make()
    registerPushRoutes(this.server, {
      pushes: {
        place: (network) => this.pushes.place(network),
        putNar: (...given) => this.pushes.putNar(...given),
        putNarinfo: (...given) => this.pushes.putNarinfo(...given),
        sizeOfUpload: (...given) => this.pushes.sizeOfUpload(...given),
        waiting: (...given) => this.pushes.waiting(...given),
      },
      sideFiles: this.sideFiles,
      local: () => undefined,
      sizeHere: async () => undefined,
      refusal: async () => this.refusal,
      storeDirectory: store.directory,
      log,
    })
  }

  make(quietMs = 60_000): Pushes {
    const { blobs, held, trust, key, log } = this
    return new Pushes({
      blobs,
      held,
      store: this.#store,
      trust,
      signersIn: () => [],
      key,
      find: async (hashPart) => this.elsewhere.get(hashPart),
      bring: async () => undefined,
      place: (network) => this.#place(network),
      log,
      quietMs,
    })
  }

  /** Publishes what was accepted. */
  settled(): Promise<void> {
    return this.pushes.settled({ id: HOME })
  }

  put(url: string, payload: string | Buffer, headers: Record<string, string> = {}) {
    return this.server.inject({ method: 'PUT', url, payload, headers })
  }

  /** As `nix copy` does, up to the first refusal. */
  async push(info: PathInfo, nar: Buffer, change: { text?: (text: string) => string; base?: string } = {}) {
    const { text = (said: string) => said, base = '/nix' } = change
    const file = zstdCompressSync(nar)
    const name = `${nix32Of(file)}.nar.zst`
    const sent = await this.put(`${base}/nar/${name}`, file)
    if (sent.statusCode !== 200) return sent
    return await this.put(`${base}/${hashPart(info.path)}.narinfo`, text(narinfoOf(info, name)))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.server.close()
    await this.pushes[Symbol.asyncDispose]()
    this.db.close()
    rmSync(this.directory, { recursive: true, force: true })
  }

  #place(network: string | undefined): PushPlace {
    if (network !== undefined && network !== 'home' && network !== HOME)
      throw new AgentError('not-found', `no network ${network}`)
    return {
      id: HOME,
      name: 'home',
      publish: (publication) => {
        this.published.set(publication.name, publication)
        this.blobs.setPins(`${PUBLICATION_PIN}${publicationKey(HOME, publication.name)}`, publication.blobs)
      },
      withdraw: (name) => {
        this.published.delete(name)
        this.blobs.setPins(`${PUBLICATION_PIN}${publicationKey(HOME, name)}`, [])
      },
    }
  }
}

export function narinfoOf(info: PathInfo, file: string): string {
  return formatNarinfo(info)
    .replace(/^URL: .*$/m, `URL: nar/${file}`)
    .replace(
      /^Compression: .*$/m,
      `Compression: ${file.endsWith('.zst') ? 'zstd' : file.endsWith('.xz') ? 'xz' : 'none'}`,
    )
    .replace(/^File(Hash|Size): .*\n/gm, '')
}

export function nix32Of(bytes: Uint8Array): string {
  return encodeNix32(createHash('sha256').update(bytes).digest())
}

const hashPart = (path: string) => path.slice(path.lastIndexOf('/') + 1).slice(0, 32)
