/**
 * What the agent says on its local API, as types: the contract between the daemon, the command line and anybody's scripts. Field
 * names are stable; fields are added, never renamed. Only types are imported here, so the command line starts fast. Closed networks have a
 * file of their own, membership-contract.ts.
 *
 * Text that peers wrote (names, descriptions) is passed on as it came: whoever prints it removes control characters.
 */

import type { ImageView } from './image-contract.ts'
import type { NetworkView } from './membership-contract.ts'
import type { InstanceView, ServiceView } from './service-contract.ts'

/** Every endpoint lives below this; a change that breaks a client gets a new one. */
export const API_PREFIX = '/v1'

export type ErrorBody = {
  error: {
    /** A code of AgentError (agent/error.ts), or `failed`. */
    code: string
    message: string
    /** What the user can do now. */
    next?: string
  }
}

/** The last line of an answer of many lines that could not be ended as it was begun. */
export type ErrorLine = { type: 'error' } & ErrorBody

/** Something that a person should know or do. `code` is `noun.state` (`peers.none`, `clock.off`) and stable. */
export type Warning = { code: string; message: string; next: string }

export type PeerView = {
  peerId: string
  /** As the peer's presence says; null until that is known. */
  name: string | null
  /** Multiaddr of the connection's far end. */
  address: string
  /** `punched`: through a hole in routers, directly. */
  path: 'direct' | 'punched' | 'relay'
  /** The member that carries the connection; null when none does. */
  relay: { peerId: string; name: string | null } | null
  direction: 'in' | 'out'
  /** null until the first ping has come back. */
  rttMs: number | null
  connectedSeconds: number
  /** Names of the networks shared with it. */
  networks: string[]
}

type ContentView = {
  /** Nix store paths that this node shares. */
  pathsShared: number
  /** Blobs on disk, and their bytes. */
  blobs: number
  bytes: number
  quotaBytes: number
  /** Of the Nix binary cache: requests answered, and requests not known. */
  hits: number
  misses: number
  /** Since the agent started. */
  fetchedBytes: number
  servedBytes: number
  /** What of that went over bulk lanes; the port is null when this node gives none. */
  lanes: { port: number | null; fetchedBytes: number; servedBytes: number }
}

export type Status = {
  version: string
  peerId: string
  name: string
  uptimeSeconds: number
  /** Multiaddrs that others can dial. */
  listen: string[]
  /** Where the loopback HTTP front-ends answer (`http://127.0.0.1:7478`); null when they are off. */
  http: string | null
  /** Without the open one when this node takes no part in it. */
  networks: NetworkView[]
  peers: PeerView[]
  /** Live artifact records known here: of this node, and of all. */
  artifacts: { own: number; known: number }
  content: ContentView
  services: ServiceView[]
  instances: InstanceView[]
  warnings: Warning[]
}

export type PingResult = {
  peerId: string
  name: string | null
  address: string
  /** `direct`, `relay` or `hops`. */
  path: string
  rttMs: number
}

type ArtifactType = 'file' | 'folder' | 'nix'

export type ArtifactView = {
  cid: string
  /** Name of the network that it is published in. */
  network: string
  name: string
  type: ArtifactType
  description: string
  sizeBytes: number
  publisher: { peerId: string; name: string | null }
  /** Published by this node. */
  own: boolean
  /** ISO 8601. */
  issued: string
  expires: string
  /** Of a Nix artifact: the store path, and how many paths its closure has. */
  root?: string
  pathCount?: number
}

/** Best first. */
export type SearchResult = {
  artifacts: ArtifactView[]
  /** There were more than the limit. */
  truncated: boolean
  /** As many again. Not said by older agents. */
  images?: ImageView[]
  imagesTruncated?: boolean
}

export type ArtifactDetail = ArtifactView & {
  /** Nodes known to publish the same content. */
  holders: { peerId: string; name: string | null; connected: boolean }[]
  /** Of a Nix artifact: the publisher's cache key, and whether this agent trusts it, or a policy says so. */
  signer?: string
  signerTrusted?: boolean
  /** Why it is not handed to the local Nix: which keys signed it, and which would have to. */
  refused?: string
}

export type PublishRequest = { storePath: string; name?: string; description?: string; network?: string }
export type UploadRequest = { type: 'file' | 'folder'; name: string; description?: string; network?: string }
export type PublishResult = {
  artifact: ArtifactView
  /** Peers that were told at once. */
  announcedTo: number
}

/** One blob of an artifact, to be read from `blobs/:digest`. */
export type Part = {
  /** SHA-256, 64 hexadecimal digits. */
  digest: string
  sizeBytes: number
  kind: 'file' | 'nar'
  /** Store path, of the parts of a Nix artifact. */
  path?: string
}
type Announced = 'publisher' | 'own' | 'issued' | 'expires' | 'network'
/** Without what a record says, and named by its CID, when no record names it and it was found by its CID in the DHT. */
export type FetchedArtifact = Omit<ArtifactView, Announced> & Partial<Pick<ArtifactView, Announced>>
export type FetchResult = { artifact: FetchedArtifact; parts: Part[] }
/** Lines of the answer to `fetch`. The last is `done` or `error`; a stream without one was cut. */
export type FetchEvent =
  | { type: 'progress'; doneBytes: number; totalBytes: number }
  | { type: 'done'; result: FetchResult }
  | ErrorLine

export type TrustedKeyView = {
  /** The name before the colon. */
  name: string
  /** `name:base64`, as in nix.conf's trusted-public-keys. */
  key: string
  /** `own` is this agent's cache key. */
  origin: 'own' | 'config' | 'added'
}

export type NixConfView = {
  /** The binary cache on loopback. */
  url: string
  /** `name:base64`. */
  publicKey: string
  /** To be added to nix.conf. */
  lines: string[]
}

type ConfigEntryView = {
  key: string
  value: string | number | boolean | string[]
  origin: 'default' | 'file' | 'env' | 'flag'
  /** The file, the variable or the flag by name; empty for a default. */
  source: string
}
export type ConfigView = {
  /** The file that was read; null when there is none. */
  file: string | null
  entries: ConfigEntryView[]
}
