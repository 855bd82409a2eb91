/** Images as the local API has them (agent/api/image-contract.ts): what networks and upstreams have, how much of it is here, who else has it, who signed it. */
import type { ImageApi } from '../api/image-api.ts'
import type {
  ImageDetail,
  ImageHistory,
  ImageList,
  ImageRemoved,
  ImageSignature,
  ImageView,
  OciConf,
} from '../api/image-contract.ts'
import type { ImageTag } from '../catalog/image-tags.ts'
import { AgentError } from '../error.ts'
import { containerdConf, dockerConf, podmanConf } from '../oci/client-conf.ts'
import type { Holders } from '../oci/holders.ts'
import { type OciDigest, parseDigest, parsePath, parseTag, type RepositoryPath, type Tag } from '../oci/names.ts'
import type { RepositoryName } from '../oci/repositories.ts'
import type { Signatures } from '../oci/signatures.ts'
import { prefixOf, upstreamSpace } from '../oci/upstream-repositories.ts'
import type { NodeOci } from './oci.ts'

/** Looking for signatures and their parts: people wait for the answer, and see those that came. */
const SIGNATURES_MS_MAX = 3_000
const CONFS = { containerd: containerdConf, podman: podmanConf, docker: dockerConf }

export type NodeImagesDeps = {
  oci: NodeOci
  holders: Pick<Holders, 'of'>
  signatures: Pick<Signatures, 'of'>
  /** Ids of the networks of this node, or of the one that is named. @throws {AgentError} `not-found` */
  networks: (named: string | undefined) => string[]
  /** Peers of a network that this node is connected to. */
  connected: (network: string) => readonly string[]
  nameOf: (peerId: string) => string | null
  self: string
  httpUrl: string | undefined
}

type Found = { name: RepositoryName; tag: Tag; image: ImageTag }

export class NodeImages implements ImageApi {
  readonly #deps: NodeImagesDeps

  constructor(deps: NodeImagesDeps) {
    this.#deps = deps
  }

  async list(words: string, limit: number, network: string | undefined, signal: AbortSignal): Promise<ImageList> {
    const { oci, networks } = this.#deps
    const results = networks(network).map((id) => oci.network(id)?.tags.search(words, limit) ?? NOTHING)
    const all = results.flatMap(({ images }) => images)
    if (results.length > 1 && words === '') all.sort((a, b) => b.moved - a.moved)
    const found = all.slice(0, limit).flatMap((image) => this.#found(image) ?? [])
    return {
      images: await this.#views(found, signal),
      truncated: all.length > limit || results.some(({ truncated }) => truncated),
    }
  }

  async show(ref: string, signal: AbortSignal): Promise<ImageDetail> {
    const found = this.#resolve(ref)
    const [view] = await this.#views([found], signal)
    if (view === undefined) throw unknown(ref)
    const heldBy = await this.#holdersOf([found], signal)
    const connected = new Set(this.#deps.connected(found.image.network))
    const peers = [...(heldBy.get(hex(found.image)) ?? [])]
    return {
      ...view,
      heldBy: peers.map((peerId) => ({
        peerId,
        name: this.#nameOf(peerId),
        connected: connected.has(peerId) || peerId === this.#deps.self,
      })),
    }
  }

  history(ref: string, limit: number): ImageHistory {
    const { name, tag, network, called } = this.#located(ref)
    const moves = this.#deps.oci.network(network)?.tags.history(called, tag, limit) ?? []
    if (moves.length === 0) throw unknown(ref)
    return {
      name: `${name.text}:${tag}`,
      moves: moves.map(({ moved, digest, peerId, counts }) => ({
        moved: new Date(moved).toISOString(),
        digest: digest ?? null,
        publisher: { peerId, name: this.#nameOf(peerId) },
        counts,
      })),
    }
  }

  async remove(ref: string, signal: AbortSignal): Promise<ImageRemoved> {
    const { oci } = this.#deps
    const { name, tag } = this.#located(ref)
    if (prefixOf(name.space) !== undefined) {
      throw new AgentError('usage', `${ref} is an image of a registry upstream, and not this network's to delete`, {
        next: 'What is kept of it here goes when its room is needed: `agent gc --all`.',
      })
    }
    const { image } = this.#resolve(ref)
    const fault = oci.places.writeFault(name)
    if (fault !== undefined)
      throw new AgentError('not-allowed', `${ref}: ${fault}`, { next: 'The policy decides: `agent policy show`.' })
    await oci.repositories.deleteTag(name, tag, signal)
    return { name: `${name.text}:${tag}`, digest: image.body.digest }
  }

  conf(program: OciConf['program']): OciConf {
    const { oci, httpUrl } = this.#deps
    if (httpUrl === undefined) {
      throw new AgentError('failed', 'the registry is off (http = off), so there is nothing to pull from', {
        next: 'Start the agent with --http 127.0.0.1:7478.',
      })
    }
    return { program, url: httpUrl, ...CONFS[program](httpUrl, oci.registries()) }
  }

  async #views(found: readonly Found[], signal: AbortSignal): Promise<ImageView[]> {
    const [holders, signatures] = await Promise.all([this.#holdersOf(found, signal), this.#signaturesOf(found, signal)])
    return await Promise.all(
      found.map(async (one): Promise<ImageView> => {
        const { name, tag, image } = one
        const { body, network, peerId, isOwn, moved, repository } = image
        return {
          name: `${name.text}:${tag}`,
          network: this.#deps.oci.nameOf(network),
          repository,
          tag,
          digest: body.digest,
          mediaType: body.mediaType,
          ...(body.artifactType !== undefined && { artifactType: body.artifactType }),
          platforms: body.platforms,
          sizeBytes: body.imageBytes,
          labels: body.labels,
          publisher: { peerId, name: this.#nameOf(peerId) },
          own: isOwn,
          updated: new Date(moved).toISOString(),
          holders: holders.get(hex(image))?.size ?? 0,
          signatures: signatures.get(one) ?? [],
          here: await this.#deps.oci.hereOf(name, body.digest as OciDigest, signal),
          ...this.#upstreamOf(one),
        }
      }),
    )
  }

  #upstreamOf({ name, tag, image }: Found): Pick<ImageView, 'upstream'> {
    const registry = prefixOf(name.space)
    if (registry === undefined) return {}
    const known = this.#deps.oci.upstreams.known(name, tag)
    return {
      upstream: {
        registry,
        checked: new Date(Math.max(known?.checkedMs ?? 0, image.moved)).toISOString(),
        fresh: known?.isFresh ?? false,
        ...(known?.reason !== undefined && { reason: known.reason }),
      },
    }
  }

  /** Those who say that they have it, and those who were asked; by the manifest's blob. */
  async #holdersOf(found: readonly Found[], signal: AbortSignal): Promise<Map<string, Set<string>>> {
    const { oci, holders, connected, self } = this.#deps
    const all = new Map<string, Set<string>>()
    for (const [network, ones] of Map.groupBy(found, ({ image }) => image.network)) {
      const tags = oci.network(network)?.tags
      const blobs = [...new Set(ones.map(({ image }) => hex(image)))]
      const asked = await holders.of(blobs, { network, peers: connected(network) }, signal)
      for (const { image, name } of ones) {
        const { digest } = image.body
        const isHere = (await oci.hereOf(name, digest as OciDigest, signal)) !== 'none'
        const said = tags?.holders(digest) ?? []
        all.set(hex(image), new Set([...said, ...(asked.get(hex(image)) ?? []), ...(isHere ? [self] : [])]))
      }
    }
    return all
  }

  async #signaturesOf(found: readonly Found[], signal: AbortSignal): Promise<Map<Found, ImageSignature[]>> {
    const { signatures } = this.#deps
    const limited = AbortSignal.any([signal, AbortSignal.timeout(SIGNATURES_MS_MAX)])
    const all = await Promise.all(
      found.map(async (one): Promise<[Found, ImageSignature[]]> => {
        const list = await signatures.of(one.name, one.image.body.digest as OciDigest, limited).catch(() => [])
        return [
          one,
          list.map(({ digest, artifactType, verified, key }) =>
            this.#signature(one, digest, { artifactType, verified, key }),
          ),
        ]
      }),
    )
    signal.throwIfAborted()
    return new Map(all)
  }

  #signature(
    { image }: Found,
    digest: string,
    { artifactType, verified, key }: { artifactType: string; verified: boolean | undefined; key: string | undefined },
  ): ImageSignature {
    const said = this.#deps.oci.network(image.network)?.tags.withDigest(digest)[0]
    const publisher = said === undefined ? '' : (this.#nameOf(said.peerId) ?? said.peerId)
    return { digest, artifactType, publisher, verified: verified ?? null, ...(key !== undefined && { key }) }
  }

  /** What clients of this node would name it by. */
  #found(image: ImageTag): Found | undefined {
    const tag = parseTag(image.tag ?? '')
    const path = parsePath(image.repository)
    if (tag === undefined || path === undefined) return undefined
    const { oci } = this.#deps
    if (image.body.upstream === true) {
      const [prefix = '', ...rest] = path.split('/')
      if (rest.length > 0 && oci.registries().some((one) => one.prefix === prefix))
        return {
          name: { space: upstreamSpace(prefix), path: rest.join('/') as RepositoryPath, text: path },
          tag,
          image,
        }
    }
    return { name: { space: image.network, path, text: `${oci.nameOf(image.network)}/${path}` }, tag, image }
  }

  /** @throws {AgentError} `not-found`, `usage` */
  #resolve(ref: string): Found {
    const { name, tag, network, called } = this.#located(ref)
    const image = this.#deps.oci.network(network)?.tags.get(called, tag)
    if (image === undefined) throw unknown(ref)
    return { name, tag, image }
  }

  /** `called` is what the network calls the repository. @throws {AgentError} `usage`, `not-found` */
  #located(ref: string): { name: RepositoryName; tag: Tag; network: string; called: string } {
    const [, text = '', tagText = 'latest'] =
      /^(?:127\.0\.0\.1:\d+\/|localhost:\d+\/)?([^:@]*)(?::([^:@]*))?$/.exec(ref) ?? []
    const [path, tag] = [parsePath(text), parseTag(tagText)]
    if (path === undefined || tag === undefined || parseDigest(ref) !== undefined) {
      throw new AgentError('usage', `${JSON.stringify(ref)} is no image`, {
        next: 'Write NETWORK/REPOSITORY:TAG, as home/team/app:1.',
      })
    }
    const { oci } = this.#deps
    const name = oci.places.locate(path, undefined)
    if (name === undefined) throw unknown(ref)
    const prefix = prefixOf(name.space)
    const network = prefix === undefined ? name.space : (oci.networkOfUpstream(prefix) ?? '')
    const called =
      prefix === undefined ? (oci.network(name.space)?.tags.callOf(name.path) ?? name.path) : `${prefix}/${name.path}`
    return { name, tag, network, called }
  }

  #nameOf(peerId: string): string | null {
    return this.#deps.nameOf(peerId)
  }
}

const NOTHING: { images: ImageTag[]; truncated: boolean } = { images: [], truncated: false }

function hex({ body }: ImageTag): string {
  return Buffer.from(body.blob).toString('hex')
}

function unknown(ref: string): AgentError {
  return new AgentError('not-found', `no image ${ref} is known here`, {
    next: '`agent image ls` lists those that are. An image of a registry upstream is known when it was pulled.',
  })
}
