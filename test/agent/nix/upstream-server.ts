/** A binary cache upstream, in this process: serves paths of a store, and misbehaves as it is told. */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { gzipSync, zstdCompressSync } from 'node:zlib'
import type { NixStore, PathInfo } from '../../../agent/nix/nix-store.ts'
import { CacheKey } from '../../../agent/nix/signing.ts'
import { layoutNar } from '../../../protocols/nar/write.ts'
import { readAll } from './peers.ts'
import { narinfoOf, nix32Of } from './push.ts'

export type Misbehaviour =
  /** Never answers. */
  | 'hangs'
  | 'fails'
  /** Narinfos are signed by somebody else. */
  | 'forges'
  /** NARs have other bytes. */
  | 'spoils'
  /** Each answer with a NAR ends in the middle; asked again, it goes on. */
  | 'cuts'
  /** The same, and it knows no ranges. */
  | 'cuts-and-forgets'
  /** NARs are gone. */
  | 'loses'

type Compressing = 'none' | 'zstd' | 'gzip'
const COMPRESS = { none: (bytes: Buffer) => bytes, zstd: zstdCompressSync, gzip: gzipSync }

export class UpstreamServer implements AsyncDisposable {
  readonly key: CacheKey
  /** Requests, `GET /x`. */
  readonly asked: string[] = []
  misbehaves: Misbehaviour | undefined
  delayMs = 0
  url = ''
  readonly #files = new Map<string, Buffer>()
  readonly #server: Server
  #cuts = 0

  private constructor(key: CacheKey) {
    this.key = key
    this.#server = createServer((request, response) => this.#answer(request, response))
  }

  static async start(key = CacheKey.ephemeral('upstream')): Promise<UpstreamServer> {
    const server = new UpstreamServer(key)
    await server.listen(0)
    return server
  }

  async listen(port: number): Promise<void> {
    await new Promise<void>((resolve) => this.#server.listen(port, '127.0.0.1', resolve))
    this.url = `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}/cache`
  }

  /** NARs that were asked for. */
  get nars(): string[] {
    return this.asked.filter((one) => one.includes('/nar/'))
  }

  /** Serves a path of the store, with the references that the store knows. */
  async add(store: NixStore, path: string, compressing: Compressing = 'zstd'): Promise<PathInfo> {
    const info = store.info(path) as PathInfo
    const layout = await layoutNar(path)
    const nar = await readAll({ sizeBytes: layout.sizeBytes, read: (...range) => layout.read(...range) })
    const file = COMPRESS[compressing](nar)
    const name = `${nix32Of(file)}.nar${compressing === 'zstd' ? '.zst' : compressing === 'gzip' ? '.gz' : ''}`
    const signed = { ...info, signatures: [this.key.sign(info)] }
    const text = narinfoOf(signed, name).replace(/^Compression: .*$/m, `Compression: ${compressing}`)
    const hashPart = path.slice(path.lastIndexOf('/') + 1).slice(0, 32)
    this.#files.set(`/cache/${hashPart}.narinfo`, Buffer.from(text))
    this.#files.set(`/cache/nar/${name}`, file)
    return info
  }

  /** Nobody listens on its port any more. */
  async down(): Promise<void> {
    this.#server.closeAllConnections()
    await new Promise<void>((resolve) => this.#server.close(() => resolve()))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#server.listening) await this.down()
  }

  #answer({ method = '', url = '', headers }: IncomingMessage, response: ServerResponse): void {
    this.asked.push(`${method} ${url}`)
    if (this.misbehaves === 'hangs') return
    setTimeout(() => this.#give(url, headers.range, response), this.delayMs)
  }

  #give(url: string, range: string | undefined, response: ServerResponse): void {
    const isNar = url.includes('/nar/')
    const file = url === '/cache/nix-cache-info' ? Buffer.from('StoreDir: /nix/store\n') : this.#files.get(url)
    if (this.misbehaves === 'fails') return void response.writeHead(500).end('out of order')
    if (file === undefined || (isNar && this.misbehaves === 'loses')) return void response.writeHead(404).end()
    if (!isNar) return void response.end(this.misbehaves === 'forges' ? forged(file) : file)
    if (this.misbehaves === 'spoils') return void response.end(spoilt(file))
    const knowsRanges = this.misbehaves !== 'cuts-and-forgets'
    const from = knowsRanges ? Number(/^bytes=(\d+)-$/.exec(range ?? '')?.[1] ?? 0) : 0
    response.writeHead(from > 0 ? 206 : 200, { 'content-length': file.byteLength - from })
    if (!this.misbehaves?.startsWith('cuts')) return void response.end(file.subarray(from))
    const part = Math.ceil(file.byteLength / 4)
    const until = knowsRanges ? from + part : part * ++this.#cuts
    if (until >= file.byteLength) return void response.end(file.subarray(from))
    response.write(file.subarray(from, until), () => setTimeout(() => response.destroy(), 20))
  }
}

function forged(narinfo: Buffer): string {
  return narinfo.toString().replace(/^NarSize: (\d+)$/m, (_, size: string) => `NarSize: ${Number(size) + 8}`)
}

function spoilt(file: Buffer): Buffer {
  const bytes = Buffer.from(file)
  bytes[bytes.byteLength >> 1] = (bytes[bytes.byteLength >> 1] ?? 0) ^ 1
  return bytes
}
