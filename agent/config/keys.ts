/**
 * The keys of the configuration, one table: what a value must be, what it is when nobody says, whether a running agent takes over a
 * change, and what to tell people. The file, the variables, the flags of `agent start` and the documentation of all follow from it.
 *
 * No schema library here: the command line loads this for every command, and messages are for people.
 */
import { hostname } from 'node:os'
import type { LogLevel } from '../log.ts'
import { credential } from './credentials.ts'
import { type Environment, socketPath, stateDirectory } from './paths.ts'
import { forwardText, offerText } from './service-values.ts'
import {
  type AddressRange,
  addressRange,
  boolean,
  dialAddress,
  dns,
  duration,
  type HttpAddress,
  http,
  integer,
  type Kind,
  list,
  listenAddress,
  namePattern,
  oneOf,
  optionalPath,
  optionalPort,
  path,
  proxy,
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
  /** TCP port of bulk lanes, 0 for any; undefined when off. */
  lanePort: number | undefined
  /** Multiaddrs, with or without /p2p/. */
  bootstrap: string[]
  mdns: boolean
  /** Whether to have the router let this node's ports in. */
  portMapping: boolean
  /** Whether to carry for members of this node's networks that cannot reach each other. */
  relay: boolean
  /** Whether to make a direct way through routers to members that a relay connects this node with. */
  punch: boolean
  /** First UDP port at which members are told where their datagrams come from, 0 for any; undefined when off. */
  reflectPort: number | undefined
  /** Whether the node takes part in the open network: that of everybody. */
  open: boolean
  /** File with tokens of networks to join, one a line; undefined when off. */
  joinFile: string | undefined
  /** undefined when off. */
  http: HttpAddress | undefined
  /** SOCKS5 and HTTP; undefined when off. */
  proxy: HttpAddress | undefined
  /** undefined when off. */
  dns: HttpAddress | undefined
  /** Of loopback, for names of services; undefined when the agent chooses. */
  addresses: AddressRange | undefined
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
  /** Patterns of names of store paths that are never given out with the store. */
  privatePaths: string[]
  /** Services that this node offers, and ports that lead to services: as service-values.ts reads them. */
  services: string[]
  forwards: string[]
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
  /** What the default is, where it differs from machine to machine or is long. */
  inWords?: string
  /** Takes effect on SIGHUP; the others need a restart. */
  reloads: boolean
  help: string
}
type AnyKey = { [Field in keyof Config]: Key<Field> }[keyof Config]

/** Each peer costs a connection with its pings and gossip; the network is connected long before this. */
const MAX_PEERS_DEFAULT = 24
/** A gateway for a fleet; beyond, one process spends its time on pings. */
const MAX_PEERS_MAX = 1_000
/** Another one is taken when somebody has it: peers are told which. */
const LANE_PORT = 7_476
/** The number that bulk lanes have on TCP; one below is used, too. */
const REFLECT_PORT = 7_476
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

/**
 * Names that look like secrets, as whole words: much depends on a `libsecret`. And derivations: nobody needs them to use what they make,
 * and all that an expression had in its environment is in them.
 */
const PRIVATE_PATHS = [
  '*.drv',
  ...['secret', 'secrets', 'password', 'passwords', 'token', 'tokens', 'private-key', 'credentials'].flatMap((word) => [
    word,
    `${word}-*`,
    `${word}.*`,
    `*-${word}`,
    `*-${word}-*`,
    `*-${word}.*`,
  ]),
  '*.key',
  '*.pem',
  '*.env',
  '*.netrc',
  'netrc',
  'id_rsa*',
  'id_ecdsa*',
  'id_ed25519*',
]

/** By name as in the file. */
export const KEYS: ReadonlyMap<string, AnyKey> = new Map<string, AnyKey>(
  Object.entries({
    name: {
      field: 'name',
      kind: text(NAME_PATTERN, `a name of letters, digits and ._- (at most ${NAME_LENGTH_MAX})`),
      byDefault: defaultName,
      inWords: 'the host’s name',
      reloads: false,
      help: 'name of this node, for people',
    } satisfies Key<'name'>,
    listen: {
      field: 'listen',
      kind: list(listenAddress),
      byDefault: () => [
        '/ip4/0.0.0.0/tcp/7477',
        '/ip6/::/tcp/7477',
        '/ip4/0.0.0.0/udp/7477/quic-v1',
        '/ip6/::/udp/7477/quic-v1',
      ],
      reloads: false,
      help: 'multiaddr to listen on for peers',
    } satisfies Key<'listen'>,
    lanes: {
      field: 'lanePort',
      kind: optionalPort,
      byDefault: () => LANE_PORT,
      reloads: false,
      help: 'TCP port on which peers get large content faster, 0 for any, or off',
    } satisfies Key<'lanePort'>,
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
    port_mapping: {
      field: 'portMapping',
      kind: boolean,
      // It opens a door in somebody's firewall, and lets all of the Internet try it: its owner says so.
      byDefault: () => false,
      reloads: false,
      help: 'have the router let this node’s ports in, by NAT-PMP or UPnP',
    } satisfies Key<'portMapping'>,
    relay: {
      field: 'relay',
      kind: boolean,
      byDefault: () => true,
      reloads: false,
      help: 'carry for members of this node’s networks that cannot reach each other',
    } satisfies Key<'relay'>,
    punch: {
      field: 'punch',
      kind: boolean,
      byDefault: () => true,
      reloads: false,
      help: 'make a direct way through routers, by UDP, to members that a relay connects this node with',
    } satisfies Key<'punch'>,
    reflect: {
      field: 'reflectPort',
      kind: optionalPort,
      byDefault: () => REFLECT_PORT,
      reloads: false,
      help: 'UDP port (and the one below) where members learn how their routers show them, 0 for any, or off',
    } satisfies Key<'reflectPort'>,
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
      byDefault: (env) => credential('join_file', env) ?? 'off',
      reloads: false,
      help: 'file with tokens of networks to join, one a line, or off',
    } satisfies Key<'joinFile'>,
    http: {
      field: 'http',
      kind: http,
      byDefault: () => '127.0.0.1:7478',
      reloads: false,
      help: 'loopback address of the Nix binary cache and of discovery for Envoy and others, or off',
    } satisfies Key<'http'>,
    proxy: {
      field: 'proxy',
      kind: proxy,
      byDefault: () => '127.0.0.1:7479',
      reloads: false,
      help: 'loopback address of the SOCKS5 and HTTP proxy to services, or off',
    } satisfies Key<'proxy'>,
    dns: {
      field: 'dns',
      kind: dns,
      byDefault: () => '127.0.0.1:7453',
      reloads: false,
      help: 'loopback address of the DNS server for names of services, or off',
    } satisfies Key<'dns'>,
    addresses: {
      field: 'addresses',
      kind: addressRange,
      byDefault: () => 'auto',
      reloads: false,
      help: 'loopback addresses for names of services, like 127.77.0.0/16, or auto',
    } satisfies Key<'addresses'>,
    socket: {
      field: 'socket',
      kind: path,
      byDefault: socketPath,
      inWords: '`/run/undernet/agent.sock` of the service, else below `$XDG_RUNTIME_DIR` or `state`',
      reloads: false,
      help: 'unix socket of the local API',
    } satisfies Key<'socket'>,
    state: {
      field: 'state',
      kind: path,
      byDefault: stateDirectory,
      inWords: '`/var/lib/undernet` of the service, else `~/.local/state/undernet`',
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
    private_paths: {
      field: 'privatePaths',
      kind: list(namePattern),
      byDefault: () => PRIVATE_PATHS,
      inWords: '`*.drv`, and names that look like secrets',
      reloads: true,
      help: 'name of store paths to keep private when the Nix store is shared, with * and ?; what refers to one is kept, too',
    } satisfies Key<'privatePaths'>,
    services: {
      field: 'services',
      kind: list(offerText),
      byDefault: () => [],
      reloads: true,
      help: 'service to offer to members: web=127.0.0.1:8080?check=http:/&network=NAME',
    } satisfies Key<'services'>,
    forwards: {
      field: 'forwards',
      kind: list(forwardText),
      byDefault: () => [],
      reloads: true,
      help: 'port of this machine that leads to a service: web.NETWORK=127.0.0.1:8000',
    } satisfies Key<'forwards'>,
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
      byDefault: (env) => credential('registry_auth', env) ?? 'off',
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

/** What the command line needs to make a flag of each key. */
export const configKeys = [...KEYS].map(([key, { kind, help, reloads }]) => ({
  key,
  help,
  reloads,
  isBoolean: kind.form.is === 'boolean',
  isList: kind.form.is === 'list',
}))

/** The host's name without its domain, as far as a node's name may have its characters. */
function defaultName(): string {
  const name = (hostname().split('.')[0] ?? '').replace(/[^0-9A-Za-z._-]/g, '-').slice(0, NAME_LENGTH_MAX)
  return NAME_PATTERN.test(name) ? name : 'node'
}
