/**
 * What this node publishes in one network: an artifact is its record, the blobs that are pinned for it, and the store paths that are shared
 * for it. They come and go together, in an order that leaves nothing announced that is not held, whenever the agent is killed: content first,
 * record last; and the other way round when it goes. What a kill left between the two is put right at the next start. Networks don't touch
 * each other: the same content may be published in several, and withdrawn from one.
 */
import type { ArtifactBody, ClosureManifest, Digest } from '../../protocols/artifact/artifact.ts'
import type { Artifact, Artifacts } from '../catalog/artifacts.ts'
import { PUBLICATION_PIN, publicationKey, publicationOf } from '../content/publication-key.ts'

type SharedClosure = Pick<ClosureManifest, 'root' | 'paths'>

export type PublicationsDeps = {
  /** Its id in hex. */
  network: string
  /** Those of the network. */
  artifacts: Pick<Artifacts, 'announce' | 'withdraw' | 'own'>
  pins: {
    pin(digest: Digest, reason: string): void
    /** Keeps these blobs for a reason, and no others for the same reason; what nobody keeps any more goes. */
    setPins(reason: string, digests: readonly Digest[]): void
    /** The reasons in use that begin so. */
    pinReasons(prefix: string): string[]
  }
  /** Shares store paths straight from the store, by the key of what they are published as. */
  paths: { publish(key: string, manifest: SharedClosure): void; withdraw(key: string): void }
  /** The DHT, for what everybody may know of: what a closed network has is said in its records only. */
  providers?: { provide(cid: string): void; withdraw(cid: string): void }
}

export type Publication = {
  name: string
  body: ArtifactBody
  /** On this node, and pinned by the caller until publish() returns. */
  blobs: readonly Digest[]
  manifest?: SharedClosure
}

export class Publications {
  readonly #deps: PublicationsDeps

  /** Puts right what a kill left half done, and announces what is published. */
  constructor(deps: PublicationsDeps) {
    this.#deps = deps
    const own = deps.artifacts.own()
    const names = new Set(own.map(({ name }) => name))
    for (const reason of deps.pins.pinReasons(PUBLICATION_PIN)) {
      const { network, name } = publicationOf(reason.slice(PUBLICATION_PIN.length))
      if (network === deps.network && !names.has(name)) this.#release(name)
    }
    for (const { body } of own) deps.providers?.provide(body.cid.toString())
  }

  /** Publishes under a name, in place of what this node published under it before. Durable when it returns. */
  publish({ name, body, blobs, manifest }: Publication): Artifact {
    const before = this.#ownNamed(name)
    const key = publicationKey(this.#deps.network, name)
    const reason = `${PUBLICATION_PIN}${key}`
    // What the name meant before is held until the new record says otherwise.
    for (const digest of blobs) this.#deps.pins.pin(digest, reason)
    if (manifest) this.#deps.paths.publish(key, manifest)
    else this.#deps.paths.withdraw(key)
    const entry = this.#deps.artifacts.announce(name, body)
    this.#deps.pins.setPins(reason, blobs)
    this.#deps.providers?.provide(body.cid.toString())
    if (before && !before.body.cid.equals(body.cid)) this.#unprovide(before.body)
    return entry
  }

  /** Takes back what a name means here, or a CID under whatever names; at least one. @throws {AgentError} `not-found` */
  withdraw(ref: string): Artifact[] {
    const withdrawn = this.#deps.artifacts.withdraw(ref)
    for (const { name, body } of withdrawn) {
      this.#release(name)
      this.#unprovide(body)
    }
    return withdrawn
  }

  /** Whether this node shares something under this name, or of this CID. */
  has(ref: string): boolean {
    return this.#deps.artifacts.own().some(({ name, cid }) => name === ref || cid === ref)
  }

  #ownNamed(name: string): Artifact | undefined {
    return this.#deps.artifacts.own().find((entry) => entry.name === name)
  }

  #release(name: string): void {
    const key = publicationKey(this.#deps.network, name)
    this.#deps.paths.withdraw(key)
    this.#deps.pins.setPins(`${PUBLICATION_PIN}${key}`, [])
  }

  /** The same content may be published under another name, too. */
  #unprovide({ cid }: ArtifactBody): void {
    const stays = this.#deps.artifacts.own().some(({ body }) => body.cid.equals(cid))
    if (!stays) this.#deps.providers?.withdraw(cid.toString())
  }
}
