/**
 * What tests and benchmarks of images share: an image on the disk in OCI's layout, skopeo as people run it, and a way to a registry that counts what
 * comes through it, and may be narrow.
 */
import { createHash, generateKeyPairSync, sign } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { createServer, type IncomingMessage, request, type Server, type ServerResponse } from 'node:http'
import { delimiter, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { gzipSync } from 'node:zlib'
import { type Outcome, run } from './agents.ts'

const PLACES = (process.env.PATH ?? '').split(delimiter)
/** A narrow way is as wide as it is said, on average over so long. */
const STEP_MS = 20

export const MANIFEST_TYPE = 'application/vnd.oci.image.manifest.v1+json'
const CONFIG_TYPE = 'application/vnd.oci.image.config.v1+json'
const LAYER_TYPE = 'application/vnd.oci.image.layer.v1.tar+gzip'

export function isInstalled(program: string): boolean {
  return PLACES.some((place) => existsSync(join(place, program)))
}

export type ImageOptions = {
  layers: readonly Uint8Array[]
  labels?: Record<string, string>
  platform?: { os: string; architecture: string; variant?: string }
}

export type LocalImage = {
  directory: string
  digest: string
  manifest: Uint8Array
  config: Uint8Array
  layers: readonly Uint8Array[]
}

/** Writes an image in OCI's layout, to be copied from with `oci:DIRECTORY`. */
export function writeImage(
  directory: string,
  { layers, labels = {}, platform = { os: 'linux', architecture: 'amd64' } }: ImageOptions,
): LocalImage {
  const blobs = join(directory, 'blobs', 'sha256')
  mkdirSync(blobs, { recursive: true })
  const put = (bytes: Uint8Array, mediaType: string) => {
    const hex = createHash('sha256').update(bytes).digest('hex')
    writeFileSync(join(blobs, hex), bytes)
    return { mediaType, digest: `sha256:${hex}`, size: bytes.byteLength }
  }
  // As it is: what is not compressed clients compress, and then it is another image.
  const packed = layers.map((layer) => gzipSync(layer, { level: 0 }))
  const listed = packed.map((layer) => put(layer, LAYER_TYPE))
  const config = json({
    ...platform,
    config: { Labels: labels },
    rootfs: { type: 'layers', diff_ids: listed.map(({ digest }) => digest) },
  })
  const manifest = json({
    schemaVersion: 2,
    mediaType: MANIFEST_TYPE,
    config: put(config, CONFIG_TYPE),
    layers: listed,
  })
  const entry = put(manifest, MANIFEST_TYPE)
  writeFileSync(join(directory, 'index.json'), json({ schemaVersion: 2, manifests: [entry] }))
  writeFileSync(join(directory, 'oci-layout'), json({ imageLayoutVersion: '1.0.0' }))
  return { directory, digest: entry.digest, manifest, config, layers: packed }
}

/** Runs skopeo on registries of this machine, which have no certificates. */
export function skopeo(...args: string[]): Promise<Outcome> {
  return run('skopeo', ['--insecure-policy', ...args])
}

/** Copies an image from or to registries of this machine; throws when that fails. */
export async function copy(from: string, to: string, ...flags: string[]): Promise<void> {
  const { code, stderr, stdout } = await skopeo(
    'copy',
    '--src-tls-verify=false',
    '--dest-tls-verify=false',
    ...flags,
    from,
    to,
  )
  if (code !== 0) throw new Error(`skopeo copy ${from} ${to}: ${stderr}${stdout}`)
}

/** `docker://127.0.0.1:7478/home/app:1` of an agent's URL. */
export function imageAt(url: string, reference: string): string {
  return `docker://${url.replace(/^http:\/\//, '')}/${reference}`
}

/** A key as cosign makes them, with what it signs: the payload of a signature, and the signature. */
export function signer(): { publicPem: string; sign(digest: string): { payload: Uint8Array; signature: string } } {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  return {
    publicPem: publicKey.export({ type: 'spki', format: 'pem' }).toString(),
    sign: (digest) => {
      const payload = json({
        critical: {
          identity: { 'docker-reference': '' },
          image: { 'docker-manifest-digest': digest },
          type: 'cosign container image signature',
        },
        optional: null,
      })
      return { payload, signature: sign('sha256', payload, privateKey).toString('base64') }
    },
  }
}

/** Stands before a registry: counts what goes through, and may be narrow, or ask for a login. */
export class WayToRegistry implements AsyncDisposable {
  readonly url: string
  /** Requests, as `GET /v2/...`. */
  readonly asked: string[] = []
  /** Of bodies, to those who asked. */
  sentBytes = 0
  readonly #server: Server

  private constructor(server: Server, url: string) {
    this.#server = server
    this.url = url
  }

  static async open(
    target: string,
    { rateBytes, login }: { rateBytes?: number; login?: string } = {},
  ): Promise<WayToRegistry> {
    let freeAt = performance.now()
    const server = createServer((incoming, answer) => {
      way.asked.push(`${incoming.method} ${incoming.url}`)
      if (login !== undefined && incoming.headers.authorization !== `Basic ${Buffer.from(login).toString('base64')}`) {
        answer.writeHead(401, { 'www-authenticate': 'Basic realm="test"' }).end()
        return
      }
      const { authorization: _secret, ...headers } = incoming.headers
      const send = async (came: IncomingMessage) => {
        answer.writeHead(came.statusCode ?? 500, came.headers)
        try {
          for await (const chunk of came as AsyncIterable<Buffer>) {
            way.sentBytes += chunk.byteLength
            if (rateBytes !== undefined) {
              freeAt = Math.max(freeAt, performance.now() - STEP_MS) + (chunk.byteLength / rateBytes) * 1_000
              const waitMs = freeAt - performance.now()
              if (waitMs > STEP_MS) await delay(waitMs)
            }
            if (!answer.write(chunk)) await drained(answer)
          }
          answer.end()
        } catch {
          answer.destroy()
        }
      }
      const onward = request(
        `${target}${incoming.url}`,
        { method: incoming.method, headers },
        (came) => void send(came),
      )
      onward.on('error', () => answer.destroy())
      incoming.pipe(onward)
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const address = server.address()
    const port = typeof address === 'object' ? address?.port : undefined
    const way = new WayToRegistry(server, `http://127.0.0.1:${port}`)
    return way
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections()
    await new Promise((resolve) => this.#server.close(resolve))
  }
}

function drained(answer: ServerResponse): Promise<unknown> {
  if (answer.destroyed) throw new Error('who asked is gone')
  return once(answer, 'drain', { signal: AbortSignal.timeout(60_000) })
}

function json(value: unknown): Buffer {
  return Buffer.from(JSON.stringify(value))
}
