/**
 * The keys of the configuration, one table: what a value must be, what it is when nobody says, whether a running agent takes over a
 * change, and what to tell people. The file, the variables, the flags of `agent start` and the documentation of all follow from it.
 *
 * No schema library here: the command line loads this for every command, and messages are for people.
 */
import { hostname } from 'node:os'
import type { LogLevel } from '../log.ts'
import { type Environment, socketPath, stateDirectory } from './paths.ts'
import {
  boolean,
  dialAddress,
  duration,
  type HttpAddress,
  http,
  integer,
  type Kind,
  list,
  listenAddress,
  oneOf,
  optionalPath,
  path,
  publicKey,
  rate,
  registry,
  size,
  text,
  upstream,
} from './values.ts'

export type Config = {
  /** What people call this node. */
  name: string
  /** Multiaddrs that libp2p listens on; none makes a node that only dials. */
  listen: string[]
  /** Multiaddrs, with or without /p2p/. */
  bootstrap: string[]
  mdns: boolean
  /** Whether the node takes part in the open network: that of everybody. */
  open: boolean
  /** File with tokens of networks to join, one a line; undefined when off. */
  joinFile: string | undefined
  /** undefined when off. */
  http: HttpAddress | undefined
  socket: string
  state: string
  maxPeers: number
  quotaBytes: number
  /** Of content to peers, bytes a second; undefined for no bound. */
  uploadRateBytes: number | undefined
  /** Nix public keys, `name:base64`. */
  trustedKeys: string[]
  /** So many different keys must have signed a store path. */
  requireSignatures: number
  /** URLs of binary caches that are asked when no peer has a path. */
  upstreams: string[]
  /** URLs of registries of images that are asked for what nobody in a network has, with their prefix and network as parameters. */
  registries: string[]
  /** For so long an answer of one of them about a tag holds. */
  registryFreshMs: number
  /** File of credentials for them, auth.json; undefined for where podman and docker keep it. */
  registryAuthFile: string | undefined
  /** Files with public keys (PEM) that signatures of images are checked by. */
  imageKeys: string[]
  logLevel: LogLevel
}

type Key<Field extends keyof Config> = {
  field: Field
  kind: Kind<Config[Field]>
  /** In the form that a person would write; may depend on the environment, and on the state directory. */
  byDefault: (env: Environment, state: string) => unknown
  /** Takes effect on SIGHUP; the others need a restart. */
  reloads: boolean
  help: string
}
type AnyKey = { [Field in keyof Config]: Key<Field> }[keyof Config]

/** Each peer costs a connection with its pings and gossip; the network is connected long before this. */
const MAX_PEERS_DEFAULT = 24
/** A gateway for a fleet; beyond, one process spends its time on pings. */
const MAX_PEERS_MAX = 1_000
const QUOTA_BYTES_MIN = 2 ** 20
/** A closure's signatures hold as many of each path. */
const SIGNATURES_MAX = 8
/** Below this a piece of 256 KiB takes so long that askers give up. */
const UPLOAD_RATE_BYTES_MIN = 2 ** 16
/** Asked all the time; and an answer that nobody would take for today's. */
const FRESH_MS_MIN = 0
const FRESH_MS_MAX = 365 * 24 * 3_600_000
/** Of a name in a presence record; it is a column in tables. */
const NAME_LENGTH_MAX = 63
const NAME_PATTERN = /^[0-9A-Za-z][0-9A-Za-z._-]{0,62}$/
const LOG_LEVELS: readonly LogLevel[] = ['debug', 'info', 'warn', 'error', 'silent']
const CACHE_NIXOS_ORG = 'cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY='

/** By name as in the file. */
export const KEYS: ReadonlyMap<string, AnyKey> = new Map<string, AnyKey>(
  Object.entries({
    name: {
      field: 'name',
      kind: text(NAME_PATTERN, `a name of letters, digits and ._- (at most ${NAME_LENGTH_MAX})`),
      byDefault: defaultName,
      reloads: false,
      help: 'name of this node, for people',
    } satisfies Key<'name'>,
    listen: {
      field: 'listen',
      kind: list(listenAddress),
      byDefault: () => ['/ip4/0.0.0.0/tcp/7477', '/ip6/::/tcp/7477'],
      reloads: false,
      help: 'multiaddr to listen on for peers',
    } satisfies Key<'listen'>,
    bootstrap: {
      field: 'bootstrap',
      kind: list(dialAddress),
      byDefault: () => [],
      reloads: true,
      help: 'multiaddr of a peer to stay connected to',
    } satisfies Key<'bootstrap'>,
    mdns: {
      field: 'mdns',
      kind: boolean,
      byDefault: () => true,
      reloads: false,
      help: 'find peers on the local network',
    } satisfies Key<'mdns'>,
    open: {
      field: 'open',
      kind: boolean,
      byDefault: () => true,
      reloads: false,
      help: 'take part in the open network, which is everybody’s',
    } satisfies Key<'open'>,
    join_file: {
      field: 'joinFile',
      kind: optionalPath,
      byDefault: () => 'off',
      reloads: false,
      help: 'file with tokens of networks to join, one a line, or off',
    } satisfies Key<'joinFile'>,
    http: {
      field: 'http',
      kind: http,
      byDefault: () => '127.0.0.1:7478',
      reloads: false,
      help: 'loopback address of the Nix binary cache, or off',
    } satisfies Key<'http'>,
    socket: {
      field: 'socket',
      kind: path,
      byDefault: socketPath,
      reloads: false,
      help: 'unix socket of the local API',
    } satisfies Key<'socket'>,
    state: {
      field: 'state',
      kind: path,
      byDefault: stateDirectory,
      reloads: false,
      help: 'directory of the key, the database and the blobs',
    } satisfies Key<'state'>,
    max_peers: {
      field: 'maxPeers',
      kind: integer(1, MAX_PEERS_MAX),
      byDefault: () => MAX_PEERS_DEFAULT,
      reloads: false,
      help: 'connections to hold when that many peers are known',
    } satisfies Key<'maxPeers'>,
    quota: {
      field: 'quotaBytes',
      kind: size(QUOTA_BYTES_MIN),
      byDefault: () => '20GiB',
      reloads: true,
      help: 'disk space for what is fetched and uploaded',
    } satisfies Key<'quotaBytes'>,
    upload_rate: {
      field: 'uploadRateBytes',
      kind: rate(UPLOAD_RATE_BYTES_MIN),
      byDefault: () => 'off',
      reloads: true,
      help: 'content that peers are sent, in bytes a second, or off for no limit',
    } satisfies Key<'uploadRateBytes'>,
    trusted_keys: {
      field: 'trustedKeys',
      kind: list(publicKey),
      byDefault: () => [CACHE_NIXOS_ORG],
      reloads: true,
      help: 'Nix public key whose signatures are believed',
    } satisfies Key<'trustedKeys'>,
    require_signatures: {
      field: 'requireSignatures',
      kind: integer(1, SIGNATURES_MAX),
      byDefault: () => 1,
      reloads: true,
      help: 'different trusted keys that must have signed a store path',
    } satisfies Key<'requireSignatures'>,
    upstreams: {
      field: 'upstreams',
      kind: list(upstream),
      byDefault: () => [],
      reloads: true,
      help: 'binary cache to ask when no peer has a path; ?network=NAME shares what comes from it there',
    } satisfies Key<'upstreams'>,
    registries: {
      field: 'registries',
      kind: list(registry),
      byDefault: () => [],
      reloads: true,
      help: 'registry of images to mirror; ?prefix=NAME is what its images are called by here, ?network=NAME shares them there',
    } satisfies Key<'registries'>,
    registry_fresh: {
      field: 'registryFreshMs',
      kind: duration(FRESH_MS_MIN, FRESH_MS_MAX),
      byDefault: () => '5m',
      reloads: true,
      help: 'for so long the answer of a registry about a tag holds',
    } satisfies Key<'registryFreshMs'>,
    registry_auth: {
      field: 'registryAuthFile',
      kind: optionalPath,
      byDefault: () => 'off',
      reloads: false,
      help: 'auth.json with credentials for registries; off: where podman and docker keep theirs',
    } satisfies Key<'registryAuthFile'>,
    image_keys: {
      field: 'imageKeys',
      kind: list(path),
      byDefault: () => [],
      reloads: false,
      help: 'file with a public key (PEM, as cosign makes them) that signatures of images are checked by',
    } satisfies Key<'imageKeys'>,
    log_level: {
      field: 'logLevel',
      kind: oneOf(LOG_LEVELS),
      byDefault: () => 'info',
      reloads: true,
      help: LOG_LEVELS.join(', '),
    } satisfies Key<'logLevel'>,
  }),
)

const LISTS: ReadonlySet<keyof Config> = new Set([
  'listen',
  'bootstrap',
  'trustedKeys',
  'upstreams',
  'registries',
  'imageKeys',
])

/** What the command line needs to make a flag of each key. */
export const configKeys = [...KEYS].map(([key, { kind, field, help, reloads }]) => ({
  key,
  help,
  reloads,
  isBoolean: (kind as unknown) === boolean,
  isList: LISTS.has(field),
}))

/** The host's name without its domain, as far as a node's name may have its characters. */
function defaultName(): string {
  const name = (hostname().split('.')[0] ?? '').replace(/[^0-9A-Za-z._-]/g, '-').slice(0, NAME_LENGTH_MAX)
  return NAME_PATTERN.test(name) ? name : 'node'
}
