/** The contract about images: what networks and upstream registries have, and how programs are told to use this agent. As contract.ts, which it is a part of. */

/** A tag of a repository, and what it means. */
export type ImageView = {
  /** As clients of this node name it, without the host: `home/team/app:1`. */
  name: string
  /** Name of the network; of what is in none, null: it came from an upstream registry, and is shared with nobody. */
  network: string | null
  repository: string
  tag: string
  digest: string
  mediaType: string
  /** Of what is no image: a chart, a signature. */
  artifactType?: string
  /** `linux/arm64/v8` */
  platforms: string[]
  /** Of all that it is made of. */
  sizeBytes: number
  labels: Record<string, string>
  publisher: { peerId: string; name: string | null }
  own: boolean
  /** ISO 8601: when the tag was put there. */
  updated: string
  /** How many nodes have it, as far as is known: those that say so, and those that were asked. */
  holders: number
  signatures: ImageSignature[]
  /** How much of it is on this node: the manifest and all, or some, or nothing. */
  here: 'all' | 'part' | 'none'
  /** Of an answer of a registry upstream. */
  upstream?: { registry: string; checked: string; fresh: boolean; reason?: string }
}

/** A signature that belongs to an image. `verified` is null where no key is configured to check it with. */
export type ImageSignature = {
  digest: string
  artifactType: string
  publisher: string
  verified: boolean | null
  key?: string
}

export type ImageList = { images: ImageView[]; truncated: boolean }
export type ImageDetail = ImageView & { heldBy: { peerId: string; name: string | null; connected: boolean }[] }
/** The newest first. */
export type ImageHistory = {
  name: string
  moves: {
    /** ISO 8601. */
    moved: string
    /** null: the tag was deleted. */
    digest: string | null
    publisher: { peerId: string; name: string | null }
    /** Whether who said it may push there, as the policy is now. */
    counts: boolean
  }[]
}
export type ImageRemoved = { name: string; digest: string }

/** Files that a program has to have to pull through this agent. */
export type OciConf = {
  program: 'containerd' | 'podman' | 'docker'
  /** Of this agent. */
  url: string
  files: { path: string; lines: string[] }[]
  /** What to do afterwards. */
  next: string
}
