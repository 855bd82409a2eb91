/**
 * One registry upstream, over HTTP: manifests, tags and blobs, with tokens as registries ask for them (WWW-Authenticate: Bearer, or Basic). It is
 * asked without credentials first: what everybody may have is not fetched in anybody's name. Blobs are streams that go on where they were cut.
 *
 * One that fails several times in a row is left alone for a while, and who wants something is told so at once.
 */
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { MANIFEST_BYTES_MAX } from './manifests.ts'
import type { OciDigest, Reference, RepositoryPath, Tag } from './names.ts'
import { parseDigest, parseTag } from './names.ts'
import type { RegistryAuth } from './registry-auth.ts'

/** A client waits for the answer, and has its own patience of half a minute or so. */
const ANSWER_MS_MAX = 15_000
/** Between two parts of a blob. */
const QUIET_MS_MAX = 20_000
/** Failures in a row. */
const FAILURES_MAX = 3
const REST_MS = 15_000
/** A token is asked for again so long before it ends. */
const TOKEN_SPARE_MS = 10_000
/** By the token specification, where it does not say. */
const TOKEN_SECONDS = 60
const TOKEN_BYTES_MAX = 64 * 1024
const TOKENS_MAX = 1_000
/** An answer of tags or referrers that is read whole. */
const LIST_BYTES_MAX = 4 * 1024 * 1024
const ACCEPT = [
  'application/vnd.oci.image.index.v1+json',
  'application/vnd.oci.image.manifest.v1+json',
  'application/vnd.docker.distribution.manifest.list.v2+json',
  'application/vnd.docker.distribution.manifest.v2+json',
].join(', ')

export type RegistryInit = {
  /** Without its parameters. */
  url: string
  /** What it is called here, and by clients that name it. */
  prefix: string
  auth: Pick<RegistryAuth, 'find'>
  log: Log
  now?: () => number
}

/** What is known of a manifest before it is read. `isPrivate`: it was given for credentials only. */
export type SaidByRegistry = {
  digest: OciDigest | undefined
  mediaType: string
  sizeBytes: number | undefined
  isPrivate: boolean
}

type Token = { header: string | undefined; isPrivate: boolean; untilMs: number }
type Asked = { path: string; method?: 'GET' | 'HEAD'; headers?: Record<string, string>; signal: AbortSignal }

export class UpstreamRegistry {
  readonly prefix: string
  readonly host: string
  readonly url: string
  readonly #auth: RegistryInit['auth']
  readonly #log: Log
  readonly #now: () => number
  /** By repository. */
  readonly #tokens = new Map<RepositoryPath, Token>()
  #failures = 0
  #restsUntil = 0
  #reason = ''

  constructor({ url, prefix, auth, log, now = () => performance.now() }: RegistryInit) {
    const { host, href } = new URL(url)
    this.prefix = prefix
    this.host = host
    this.url = href.endsWith('/') ? href.slice(0, -1) : href
    this.#auth = auth
    this.#log = log
    this.#now = now
  }

  /** Why it is left alone at the moment. */
  get resting(): string | undefined {
    return this.#failures >= FAILURES_MAX && this.#restsUntil > this.#now() ? this.#reason : undefined
  }

  /**
   * What it says of a manifest; undefined when it has none.
   *
   * @throws {AgentError} `failed` when it cannot say, `not-allowed` when it will not
   */
  async head(path: RepositoryPath, reference: Reference, signal: AbortSignal): Promise<SaidByRegistry | undefined> {
    const asked = {
      path: `manifests/${reference.tag ?? reference.digest}`,
      method: 'HEAD' as const,
      headers: { accept: ACCEPT },
    }
    const answer = await this.#ask(path, { ...asked, signal })
    return answer && saidBy(answer.response, answer.isPrivate)
  }

  /** The bytes of a manifest, which were held against nothing. @throws {AgentError} as head */
  async manifest(
    path: RepositoryPath,
    reference: Reference,
    signal: AbortSignal,
  ): Promise<(SaidByRegistry & { bytes: Uint8Array }) | undefined> {
    const asked = { path: `manifests/${reference.tag ?? reference.digest}`, headers: { accept: ACCEPT } }
    const answer = await this.#ask(path, { ...asked, signal })
    if (answer === undefined) return undefined
    const bytes = await wholeOf(answer.response, MANIFEST_BYTES_MAX)
    return { ...saidBy(answer.response, answer.isPrivate), sizeBytes: bytes.byteLength, bytes }
  }

  /** The size of a blob; undefined when it has none, or does not say. @throws {AgentError} as head */
  async sizeOf(path: RepositoryPath, digest: OciDigest, signal: AbortSignal): Promise<number | undefined> {
    const answer = await this.#ask(path, { path: `blobs/${digest}`, method: 'HEAD', signal })
    return answer && lengthOf(answer.response)
  }

  /** From an offset to the end. @throws {AgentError} `not-found`, `failed`, `not-allowed` */
  async *blob(path: RepositoryPath, digest: OciDigest, from: number, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    const quiet = new AbortController()
    const timer = setTimeout(() => quiet.abort(new Error(`nothing came for ${QUIET_MS_MAX} ms`)), QUIET_MS_MAX)
    try {
      const headers = from > 0 ? { range: `bytes=${from}-` } : {}
      const limited = AbortSignal.any([signal, quiet.signal])
      const answer = await this.#ask(path, { path: `blobs/${digest}`, headers, signal: limited })
      if (answer === undefined) throw new AgentError('not-found', `${this.prefix} does not have the blob ${digest}`)
      // A server that knows no ranges begins anew: what is known already is passed over.
      let skip = answer.response.status === 206 ? 0 : from
      for await (const chunk of (answer.response.body ?? []) as unknown as AsyncIterable<Uint8Array>) {
        timer.refresh()
        const rest = chunk.subarray(Math.min(skip, chunk.byteLength))
        skip -= chunk.byteLength - rest.byteLength
        if (rest.byteLength > 0) yield rest
        timer.refresh()
      }
    } catch (error) {
      signal.throwIfAborted()
      throw error instanceof AgentError
        ? error
        : new AgentError('failed', `${this.prefix}: ${reasonOf(error)}`, { cause: error })
    } finally {
      clearTimeout(timer)
    }
  }

  /** One page of tags; undefined when it knows no such repository. @throws {AgentError} as head */
  async tags(
    path: RepositoryPath,
    { n, last }: { n: number; last: string | undefined },
    signal: AbortSignal,
  ): Promise<Tag[] | undefined> {
    const query = new URLSearchParams({ n: String(n), ...(last !== undefined && { last }) })
    const answer = await this.#ask(path, { path: `tags/list?${query.toString()}`, signal })
    if (answer === undefined) return undefined
    const { tags } = jsonOf(await wholeOf(answer.response, LIST_BYTES_MAX)) as { tags?: unknown }
    return (Array.isArray(tags) ? tags : []).flatMap((tag) => (typeof tag === 'string' ? (parseTag(tag) ?? []) : []))
  }

  /** The index of manifests that belong to another one; undefined where the registry knows no such thing. @throws {AgentError} as head */
  async referrers(path: RepositoryPath, digest: OciDigest, signal: AbortSignal): Promise<Uint8Array | undefined> {
    const answer = await this.#ask(path, { path: `referrers/${digest}`, signal })
    return answer && (await wholeOf(answer.response, LIST_BYTES_MAX))
  }

  /** Asks with the token that is there, and once more with the one that is asked for. */
  async #ask(
    repository: RepositoryPath,
    asked: Asked,
  ): Promise<{ response: Response; isPrivate: boolean } | undefined> {
    if (this.resting !== undefined)
      throw new AgentError('failed', `${this.prefix} is left alone, since ${this.#reason}`)
    const signal = AbortSignal.any([asked.signal, AbortSignal.timeout(ANSWER_MS_MAX)])
    try {
      let token = this.#tokenFor(repository)
      let response = await this.#send(repository, asked, token, signal)
      // First in nobody's name; then, where that is not enough, in that of who runs the agent.
      for (const isPrivate of [false, true]) {
        if (response.status !== 401 && !(response.status === 403 && !token?.isPrivate)) break
        const challenge = response.headers.get('www-authenticate')
        const fresh = await this.#token(repository, challenge, isPrivate, signal)
        if (fresh === undefined) continue
        await response.body?.cancel()
        token = fresh
        response = await this.#send(repository, asked, token, signal)
      }
      return await this.#judge(response, token?.isPrivate ?? false)
    } catch (error) {
      asked.signal.throwIfAborted()
      if (error instanceof AgentError) throw error
      const reason = signal.aborted ? `it did not answer within ${ANSWER_MS_MAX} ms` : causeOf(error)
      this.#failed(reason)
      throw new AgentError('failed', `${this.prefix} does not answer: ${reason}`, { cause: error })
    }
  }

  async #judge(
    response: Response,
    isPrivate: boolean,
  ): Promise<{ response: Response; isPrivate: boolean } | undefined> {
    const { status, ok } = response
    if (ok) {
      this.#failures = 0
      return { response, isPrivate }
    }
    await response.body?.cancel()
    if (status === 404) {
      this.#failures = 0
      return undefined
    }
    if (status === 401 || status === 403) {
      throw new AgentError('not-allowed', `${this.prefix} does not give it (HTTP ${status})`, {
        next: `Log in: podman login ${this.prefix}`,
      })
    }
    const reason = `it answers with HTTP ${status}`
    if (status >= 500 || status === 429) this.#failed(reason)
    throw new AgentError('failed', `${this.prefix}: ${reason}`)
  }

  #send(repository: RepositoryPath, asked: Asked, token: Token | undefined, signal: AbortSignal): Promise<Response> {
    const { path, method = 'GET', headers = {} } = asked
    // The time to the answer is bounded; its body has other bounds.
    const limited = method === 'GET' && path.startsWith('blobs/') ? asked.signal : signal
    return fetch(`${this.url}/v2/${repository}/${path}`, {
      method,
      headers: {
        ...headers,
        'accept-encoding': 'identity',
        ...(token?.header !== undefined && { authorization: token.header }),
      },
      signal: limited,
    })
  }

  #tokenFor(repository: RepositoryPath): Token | undefined {
    const token = this.#tokens.get(repository)
    if (token && token.untilMs > this.#now()) return token
    this.#tokens.delete(repository)
    return undefined
  }

  /** Undefined when there is none to be had in that way. */
  async #token(
    repository: RepositoryPath,
    challenge: string | null,
    isPrivate: boolean,
    signal: AbortSignal,
  ): Promise<Token | undefined> {
    const credentials = isPrivate ? await this.#auth.find([this.prefix, this.host], repository) : undefined
    if (isPrivate && credentials === undefined) return undefined
    const basic =
      credentials && `Basic ${Buffer.from(`${credentials.user}:${credentials.password}`).toString('base64')}`
    const { scheme, realm, service, scope } = parseChallenge(challenge ?? '')
    let token: Token | undefined
    if (scheme === 'basic')
      token = basic === undefined ? undefined : { header: basic, isPrivate, untilMs: Number.POSITIVE_INFINITY }
    else if (scheme === 'bearer' && realm !== undefined)
      token = await this.#bearer(
        { realm, service, scope: scope ?? `repository:${repository}:pull` },
        { basic, isPrivate },
        signal,
      )
    if (token === undefined) return undefined
    if (this.#tokens.size >= TOKENS_MAX) this.#tokens.clear()
    this.#tokens.set(repository, token)
    return token
  }

  async #bearer(
    { realm, service, scope }: { realm: string; service: string | undefined; scope: string },
    { basic, isPrivate }: { basic: string | undefined; isPrivate: boolean },
    signal: AbortSignal,
  ): Promise<Token | undefined> {
    const url = URL.canParse(realm) ? new URL(realm) : undefined
    const isSafe = url?.protocol === 'https:' || (url?.protocol === 'http:' && this.url.startsWith('http:'))
    if (url === undefined || !isSafe) throw new Error('it asks for a token of a place that is not safe')
    if (service !== undefined) url.searchParams.set('service', service)
    url.searchParams.set('scope', scope)
    const response = await fetch(url, { signal, headers: basic === undefined ? {} : { authorization: basic } })
    if (!response.ok) {
      await response.body?.cancel()
      this.#log.debug({ registry: this.prefix, status: response.status }, 'registry.no-token')
      return undefined
    }
    const said = jsonOf(await wholeOf(response, TOKEN_BYTES_MAX)) as Record<string, unknown>
    const text = said.token ?? said.access_token
    if (typeof text !== 'string' || !/^[!-~]+$/.test(text)) return undefined
    const seconds = typeof said.expires_in === 'number' ? said.expires_in : TOKEN_SECONDS
    return { header: `Bearer ${text}`, isPrivate, untilMs: this.#now() + seconds * 1_000 - TOKEN_SPARE_MS }
  }

  #failed(reason: string): void {
    this.#failures++
    this.#reason = reason
    if (this.#failures >= FAILURES_MAX) this.#restsUntil = this.#now() + REST_MS
  }
}

/** `Bearer realm="https://...",service="...",scope="..."`, with one challenge, as registries send it. */
export function parseChallenge(header: string): { scheme: string; realm?: string; service?: string; scope?: string } {
  const [, scheme = '', rest = ''] = /^\s*([A-Za-z]+)\s*(.*)$/s.exec(header.slice(0, 4_096)) ?? []
  const found = rest.matchAll(/([a-z]+)="([^"]*)"/gi)
  const { realm, service, scope } = Object.fromEntries(
    [...found].map(([, key = '', value = '']) => [key.toLowerCase(), value]),
  )
  return {
    scheme: scheme.toLowerCase(),
    ...(realm !== undefined && { realm }),
    ...(service !== undefined && { service }),
    ...(scope !== undefined && { scope }),
  }
}

function saidBy(response: Response, isPrivate: boolean): SaidByRegistry {
  const digest = parseDigest(response.headers.get('docker-content-digest') ?? '')
  const [mediaType = ''] = (response.headers.get('content-type') ?? '').split(';')
  return { digest, mediaType: mediaType.trim(), sizeBytes: lengthOf(response), isPrivate }
}

function lengthOf(response: Response): number | undefined {
  const text = response.headers.get('content-length') ?? ''
  return /^\d{1,15}$/.test(text) ? Number(text) : undefined
}

async function wholeOf(response: Response, bytesMax: number): Promise<Uint8Array> {
  const chunks: Uint8Array[] = []
  let bytes = 0
  for await (const chunk of (response.body ?? []) as unknown as AsyncIterable<Uint8Array>) {
    bytes += chunk.byteLength
    if (bytes > bytesMax) throw new AgentError('corrupt', `an answer of more than ${bytesMax} bytes`)
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
}

function jsonOf(bytes: Uint8Array): object {
  const value: unknown = JSON.parse(Buffer.from(bytes).toString('utf8'))
  return typeof value === 'object' && value !== null ? value : {}
}

/** What fetch says is `fetch failed`; why is in its cause. */
function causeOf(error: unknown): string {
  const { cause } = error as Error
  return cause instanceof Error && cause.message !== '' ? cause.message : reasonOf(error)
}
