/**
 * One client on a stream of xDS (state of the world, one or several kinds of resource): what it has asked for, what it was sent, and what it
 * said to that. https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol
 *
 * A client is sent a kind of resource when it asks for it the first time or for other names, and when something of that changed. A refusal
 * (NACK) is logged; the same version is not sent again. What it says of an answer that is not the last one is passed over.
 */
import type { Log } from '../log.ts'
import { printable } from '../printable.ts'
import type { Directory } from './directory.ts'
import type { Json } from './protobuf.ts'
import { type Snapshot, snapshotOf } from './resources.ts'
import { RESOURCE_KINDS, type ResourceKind, TYPE_URLS } from './xds-schema.ts'

/** Of one kind. Envoy names each cluster that it was told of. */
const NAMES_MAX = 2_048
/** Of a client's words in the log. */
const REASON_LENGTH_MAX = 500

/** As it is read; checked here. */
export type XdsRequest = {
  type_url?: string
  resource_names: string[]
  response_nonce?: string
  error_detail?: { message?: string }
  node?: { id?: string }
}
export type XdsResponse = Json & {
  version_info: string
  resources: Snapshot['resources']
  type_url: string
  nonce: string
}

/** Kinds of which a client that names none wants all; of the others it then wants none. */
const WITH_ALL: readonly ResourceKind[] = ['clusters', 'listeners']
const ALL = '*'

type Watch = { names: readonly string[] | 'all'; version: string | undefined; nonce: string }

export class XdsSession {
  readonly #watches = new Map<ResourceKind, Watch>()
  readonly #directory: Directory
  readonly #send: (response: XdsResponse) => void
  readonly #log: Log
  #node = ''
  #sent = 0
  /** Answers are made one after the other, each from what is true then. */
  #work: Promise<void> = Promise.resolve()

  constructor(directory: Directory, send: (response: XdsResponse) => void, log: Log) {
    this.#directory = directory
    this.#send = send
    this.#log = log
  }

  /** Takes in a request; what is to be said to it is sent. `only` is the kind of a stream that is for one. */
  request(request: XdsRequest, only?: ResourceKind): void {
    const kind = only ?? RESOURCE_KINDS.find((one) => TYPE_URLS[one] === request.type_url)
    // Secrets, runtimes and whatever else a client may want: there are none, and to say so would be to delete those that it has.
    if (kind === undefined) return
    this.#node ||= printable(request.node?.id ?? '').slice(0, REASON_LENGTH_MAX)
    const watch = this.#watches.get(kind)
    const names = wantedOf(kind, request.resource_names, watch)
    const nonce = request.response_nonce ?? ''
    if (watch !== undefined && nonce !== '' && nonce !== watch.nonce) return
    if (request.error_detail !== undefined) {
      const reason = printable(request.error_detail.message ?? '').slice(0, REASON_LENGTH_MAX)
      this.#log.warn({ node: this.#node, kind, version: watch?.version, reason }, 'xds.refused')
    }
    if (watch !== undefined && String(watch.names) === String(names)) return
    // Names that it wants no longer need no answer.
    const isLess = watch !== undefined && names !== 'all' && isPart(names, watch.names)
    this.#watches.set(kind, { names, version: isLess ? watch.version : undefined, nonce: watch?.nonce ?? '' })
    if (!isLess) this.#begin(() => this.#update(kind))
  }

  /** Something may have changed. Resolves when the client was sent what did. */
  async changed(): Promise<void> {
    this.#begin(async () => {
      for (const kind of RESOURCE_KINDS) await this.#update(kind)
    })
    await this.#work
  }

  #begin(work: () => Promise<void>): void {
    this.#work = this.#work.then(work).catch((error: unknown) => this.#log.error({ err: error }, 'xds.failed'))
  }

  async #update(kind: ResourceKind): Promise<void> {
    const watch = this.#watches.get(kind)
    if (watch === undefined) return
    const { version, resources } = await snapshotOf(kind, watch.names, 'ads', this.#directory)
    // It may want something else by now, and is then answered for that.
    if (this.#watches.get(kind) !== watch || version === watch.version) return
    this.#sent += 1
    watch.version = version
    watch.nonce = `${this.#sent}`
    this.#send({ version_info: version, resources, type_url: TYPE_URLS[kind], nonce: watch.nonce })
  }
}

/** Who names none wants all, unless he had named some and wants those no longer. */
function wantedOf(kind: ResourceKind, names: readonly string[], watch: Watch | undefined): readonly string[] | 'all' {
  const mayWantAll = WITH_ALL.includes(kind)
  if (mayWantAll && (names.includes(ALL) || (names.length === 0 && (watch === undefined || watch.names === 'all'))))
    return 'all'
  return [...new Set(names)].sort().slice(0, NAMES_MAX)
}

function isPart(names: readonly string[], of: readonly string[] | 'all'): boolean {
  const all = new Set(of === 'all' ? [] : of)
  return names.every((name) => all.has(name))
}
