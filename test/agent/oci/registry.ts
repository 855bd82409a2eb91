/** The registry on a real HTTP server, with real blobs and a real database in a temporary directory, and a client that hides nothing. */
import { createHash, randomBytes } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { type IncomingHttpHeaders, request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import { BlobIndex } from '../../../agent/content/blob-index.ts'
import { Blobs } from '../../../agent/content/blobs.ts'
import { PieceLists } from '../../../agent/content/piece-lists.ts'
import { HttpServer } from '../../../agent/http/server.ts'
import { LocalRepositories } from '../../../agent/oci/local-repositories.ts'
import { OCI_INDEX, OCI_MANIFEST } from '../../../agent/oci/manifests.ts'
import type { RepositoryPath } from '../../../agent/oci/names.ts'
import type { Places, RepositoryName } from '../../../agent/oci/repositories.ts'
import { registerOciRoutes } from '../../../agent/oci/routes.ts'
import { Uploads } from '../../../agent/oci/uploads.ts'
import { type Database, openDatabase } from '../../../agent/state/database.ts'

const MIB = 1024 * 1024
export const HOME = 'a'.repeat(64)
const OTHER = 'b'.repeat(64)
const SPACES = new Map([
  ['home', HOME],
  ['other', OTHER],
])
const EMPTY_TYPE = 'application/vnd.oci.empty.v1+json'
const LAYER_TYPE = 'application/vnd.oci.image.layer.v1.tar+gzip'

export type Answer = { status: number; headers: IncomingHttpHeaders; body: Buffer }
type Asking = { headers?: Record<string, string | number>; body?: Uint8Array | readonly Uint8Array[] }
export type Json = Record<string, unknown>

/** Names are `home/...` and `other/...`; `home/locked` takes nothing. */
const places: Places = {
  locate(path, ns) {
    if (ns !== undefined) return ns === 'mirror.example' ? { space: 'upstream:mirror', path, text: path } : undefined
    const [network = '', ...rest] = path.split('/')
    const space = SPACES.get(network)
    return space && rest.length > 0 ? { space, path: rest.join('/') as RepositoryPath, text: path } : undefined
  },
  writeFault: ({ path }) => (path === 'locked' ? 'nobody may push to it' : undefined),
}

export class Registry implements AsyncDisposable {
  readonly directory = mkdtempSync(join(tmpdir(), 'undernet-registry-'))
  #stack = new AsyncDisposableStack()
  readonly #quotaBytes: number
  /** Told to those who want to change something. */
  refusal: string | undefined
  now = Date.now()
  db!: Database
  blobs!: Blobs
  repositories!: LocalRepositories
  uploads!: Uploads
  url!: string

  private constructor(quotaBytes: number) {
    this.#quotaBytes = quotaBytes
  }

  static async start({ quotaBytes = 256 * MIB } = {}): Promise<Registry> {
    const registry = new Registry(quotaBytes)
    await registry.#start()
    return registry
  }

  /** As after a restart: all that is in memory is gone. */
  async restart(): Promise<void> {
    await this.#stack.disposeAsync()
    this.#stack = new AsyncDisposableStack()
    await this.#start()
  }

  async #start(): Promise<void> {
    const stack = this.#stack
    const log = pino({ level: 'silent' })
    const db = openDatabase(join(this.directory, 'state.db'))
    stack.defer(() => db.close())
    const directory = join(this.directory, 'blobs')
    const index = new BlobIndex(db)
    const now = () => this.now
    const blobs = Blobs.open({ directory, index, lists: new PieceLists(db), quotaBytes: this.#quotaBytes, log, now })
    const repositories = stack.use(new LocalRepositories({ db, blobs, now }))
    const uploads = stack.use(
      Uploads.open({ directory: join(directory, 'uploads'), db, blobs, repositories, log, now }),
    )
    const refusal = async () => this.refusal
    const register = (app: Parameters<typeof registerOciRoutes>[0]) =>
      registerOciRoutes(app, { repositories, uploads, places, refusal, log })
    const server = stack.use(await HttpServer.start({ host: '127.0.0.1', port: 0 }, register, log))
    Object.assign(this, { db, blobs, repositories, uploads, url: server.url })
  }

  /** `path` after /v2/. Nothing in it is changed on the way, unlike in a URL. */
  ask(method: string, path: string, { headers = {}, body }: Asking = {}): Promise<Answer> {
    const { hostname: host, port } = new URL(this.url)
    const whole = body instanceof Uint8Array ? body : undefined
    const length = body === undefined ? { 'content-length': 0 } : whole && { 'content-length': whole.byteLength }
    const framing = method === 'GET' || method === 'HEAD' ? {} : length
    return new Promise((resolve, reject) => {
      const place = path.startsWith('/') ? path : `/v2/${path}`
      const asking = request({ host, port, method, path: place, headers: { ...framing, ...headers } }, (answer) => {
        const chunks: Buffer[] = []
        answer.on('data', (chunk: Buffer) => chunks.push(chunk))
        answer.once('error', reject)
        answer.once('end', () => {
          resolve({ status: answer.statusCode ?? 0, headers: answer.headers, body: Buffer.concat(chunks) })
        })
      })
      asking.once('error', reject)
      if (whole) asking.end(whole)
      else {
        for (const chunk of (body as readonly Uint8Array[] | undefined) ?? []) asking.write(chunk)
        asking.end()
      }
    })
  }

  /** The codes of an answer's errors. */
  async fault(method: string, path: string, asking?: Asking): Promise<[number, ...string[]]> {
    const { status, body } = await this.ask(method, path, asking)
    const { errors } = json(body) as { errors: { code: string; message: string }[] }
    return [status, ...errors.map(({ code }) => code)]
  }

  /** Pushes a blob with POST and PUT, and returns its descriptor. */
  async push(name: string, bytes: Uint8Array, algorithm: 'sha256' | 'sha512' = 'sha256', mediaType = LAYER_TYPE) {
    const digest = digestOf(bytes, algorithm)
    const { headers } = await this.ask('POST', `${name}/blobs/uploads/`)
    const { status, body } = await this.ask('PUT', `${headers.location}?digest=${digest}`, { body: bytes })
    if (status !== 201) throw new Error(`PUT of a blob: ${status} ${body.toString()}`)
    return { mediaType, digest, size: bytes.byteLength }
  }

  /** Pushes an image of one random layer, or what is given of it, and returns what it is. */
  async pushImage(name: string, reference: string | undefined, fields: Json = {}) {
    const config = await this.push(name, Buffer.from('{}'), 'sha256', EMPTY_TYPE)
    const layer = await this.push(name, randomBytes(100))
    const manifest = { schemaVersion: 2, mediaType: OCI_MANIFEST, config, layers: [layer], ...fields }
    const pushed = await this.putManifest(name, reference, manifest)
    return { ...pushed, layer }
  }

  async putManifest(name: string, reference: string | undefined, manifest: Json) {
    const bytes = Buffer.from(JSON.stringify(manifest))
    const digest = digestOf(bytes)
    const mediaType = String(manifest.mediaType)
    const headers = { 'content-type': mediaType }
    const answer = await this.ask('PUT', `${name}/manifests/${reference ?? digest}`, { body: bytes, headers })
    if (answer.status !== 201) throw new Error(`PUT of a manifest: ${answer.status} ${answer.body.toString()}`)
    return { answer, bytes, digest, descriptor: { mediaType, digest, size: bytes.byteLength } }
  }

  async putIndex(name: string, reference: string | undefined, manifests: readonly Json[], fields: Json = {}) {
    return await this.putManifest(name, reference, { schemaVersion: 2, mediaType: OCI_INDEX, manifests, ...fields })
  }

  /** Whether a blob is kept whatever room is needed. */
  isPinned(digest: string): boolean {
    return this.blobs.index.pins(digest.replace('sha256:', '')).length > 0
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync()
    rmSync(this.directory, { recursive: true, force: true })
  }
}

export function digestOf(bytes: Uint8Array, algorithm: 'sha256' | 'sha512' = 'sha256'): string {
  return `${algorithm}:${createHash(algorithm).update(bytes).digest('hex')}`
}

export function json(body: Buffer): Json {
  return JSON.parse(body.toString()) as Json
}

/** As the routes would have it. */
export function named(text: string): RepositoryName {
  const name = places.locate(text as RepositoryPath, undefined)
  if (name === undefined) throw new Error(text)
  return name
}
