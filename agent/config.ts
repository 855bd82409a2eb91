/**
 * The agent's configuration: one table of keys, and what each is worth after flags, environment, file and defaults, in this order of
 * precedence. Every value remembers where it came from. All mistakes are reported at once, an unknown key with the nearest known one.
 *
 * No schema library here: a key is one line of a table that also makes the flags of `agent start`, and `agent config show` has to
 * work, fast, when no agent runs.
 */
import { readFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { dirname, resolve } from 'node:path'
import { parse, TomlError } from 'smol-toml'
import { nearest } from './config-nearest.ts'
import { configFile, type Environment, socketPath, stateDirectory } from './config-paths.ts'
import {
  boolean,
  dialAddress,
  type HttpAddress,
  http,
  integer,
  type Kind,
  list,
  listenAddress,
  oneOf,
  path,
  publicKey,
  size,
  text,
} from './config-values.ts'
import { AgentError, reasonOf } from './error.ts'
import type { LogLevel } from './log.ts'

export type Config = {
  /** What people call this node. */
  name: string
  /** Multiaddrs that libp2p listens on; none makes a node that only dials. */
  listen: string[]
  /** Multiaddrs, with or without /p2p/. */
  bootstrap: string[]
  mdns: boolean
  /** undefined when off. */
  http: HttpAddress | undefined
  socket: string
  state: string
  maxPeers: number
  quotaBytes: number
  /** Nix public keys, `name:base64`. */
  trustedKeys: string[]
  logLevel: LogLevel
}

export type ConfigOrigin = 'default' | 'file' | 'env' | 'flag'
export type ConfigEntry = {
  /** As in the file: `max_peers`. */
  key: string
  /** As a person would write it. */
  value: string | number | boolean | string[]
  origin: ConfigOrigin
  /** The file, the variable or the flag by name; empty for a default. */
  source: string
}

export type LoadedConfig = {
  readonly values: Readonly<Config>
  readonly entries: readonly ConfigEntry[]
  /** The file that was read; undefined when there is none. */
  readonly file: string | undefined
  /** Reads the same sources again. @throws {AgentError} `usage` */
  reload(): LoadedConfig
}

/** By key as in the file; lists are what a repeatable flag collected. */
export type ConfigFlags = Readonly<Record<string, string | boolean | string[] | undefined>>
export type ConfigSources = {
  flags?: ConfigFlags
  env?: Environment
  /** `--config`: this file, which then has to exist. */
  file?: string | undefined
}

type Key<Field extends keyof Config> = {
  field: Field
  kind: Kind<Config[Field]>
  /** In the form that a person would write; may depend on the environment, and on the state directory. */
  byDefault(env: Environment, state: string): unknown
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
/** Of a name in a presence record; it is a column in tables. */
const NAME_LENGTH_MAX = 63
const NAME_PATTERN = /^[0-9A-Za-z][0-9A-Za-z._-]{0,62}$/
const LOG_LEVELS: readonly LogLevel[] = ['debug', 'info', 'warn', 'error', 'silent']
const CACHE_NIXOS_ORG = 'cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY='

const KEYS = new Map<string, AnyKey>(
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
      reloads: true,
      help: 'connections to hold when that many peers are known',
    } satisfies Key<'maxPeers'>,
    quota: {
      field: 'quotaBytes',
      kind: size(QUOTA_BYTES_MIN),
      byDefault: () => '20GiB',
      reloads: true,
      help: 'disk space for what is fetched and uploaded',
    } satisfies Key<'quotaBytes'>,
    trusted_keys: {
      field: 'trustedKeys',
      kind: list(publicKey),
      byDefault: () => [CACHE_NIXOS_ORG],
      reloads: true,
      help: 'Nix public key whose signatures are believed',
    } satisfies Key<'trustedKeys'>,
    log_level: {
      field: 'logLevel',
      kind: oneOf(LOG_LEVELS),
      byDefault: () => 'info',
      reloads: true,
      help: LOG_LEVELS.join(', '),
    } satisfies Key<'logLevel'>,
  }),
)

/** Variables that are not keys. */
const OTHER_VARIABLES = ['UNDERNET_CONFIG']

/** What the command line needs to make a flag of each key. */
export const configKeys = [...KEYS].map(([key, { kind, field, help }]) => ({
  key,
  help,
  isBoolean: (kind as unknown) === boolean,
  isList: field === 'listen' || field === 'bootstrap' || field === 'trustedKeys',
}))

/**
 * Reads the configuration.
 *
 * @throws {AgentError} `usage` with every mistake that was found, each on a line.
 */
export function loadConfig({ flags = {}, env = process.env, file }: ConfigSources = {}): LoadedConfig {
  const named = file ?? (env.UNDERNET_CONFIG || undefined)
  const filePath = resolve(named ?? configFile(env))
  const table = readToml(filePath, named !== undefined)
  const mistakes = [...unknownKeys(table ?? {}, filePath), ...unknownVariables(env)]

  const values: Partial<Record<keyof Config, unknown>> = {}
  const entries: ConfigEntry[] = []
  // The default of `socket` depends on `state`.
  const order = [...KEYS].sort(([a], [b]) => Number(b === 'state') - Number(a === 'state'))
  for (const [key, { field, kind, byDefault }] of order) {
    const { raw, origin, source, base } = pick(key, flags, env, table, filePath) ?? {
      raw: byDefault(env, values.state as string),
      origin: 'default' as const,
      source: '',
      base: '/',
    }
    try {
      const value = kind.read(raw, base)
      values[field] = value
      entries.push({ key, value: (kind as Kind<unknown>).show(value), origin, source })
    } catch (error) {
      mistakes.push(`${source}: ${key} ${reasonOf(error)}`)
    }
  }
  if (mistakes.length > 0)
    throw new AgentError('usage', mistakes.join('\n'), {
      next: 'Correct it and try again; `agent start --help` lists every key.',
    })

  const keys = [...KEYS.keys()]
  return {
    values: values as Config,
    entries: entries.sort((a, b) => keys.indexOf(a.key) - keys.indexOf(b.key)),
    file: table === undefined ? undefined : filePath,
    reload: () => loadConfig({ flags, env, file }),
  }
}

/** Keys whose value differs: which of them a running agent takes over, and which need a restart. */
export function changedKeys(before: LoadedConfig, after: LoadedConfig): { reloaded: string[]; restart: string[] } {
  const changed = [...KEYS].filter(
    ([, { field }]) => JSON.stringify(before.values[field]) !== JSON.stringify(after.values[field]),
  )
  return {
    reloaded: changed.filter(([, { reloads }]) => reloads).map(([key]) => key),
    restart: changed.filter(([, { reloads }]) => !reloads).map(([key]) => key),
  }
}

/** The socket that a file names, whatever else is wrong with the file. */
export function socketInFile(file: string): string | undefined {
  try {
    const { socket } = parse(readFileSync(file, 'utf8'))
    return socket === undefined ? undefined : path.read(socket, dirname(file))
  } catch {
    return undefined
  }
}

type Picked = { raw: unknown; origin: ConfigOrigin; source: string; base: string }

function pick(
  key: string,
  flags: ConfigFlags,
  env: Environment,
  table: Record<string, unknown> | undefined,
  file: string,
): Picked | undefined {
  const base = process.cwd()
  const flag = flags[key]
  if (flag !== undefined) {
    const name = `--${flag === false ? 'no-' : ''}${key.replaceAll('_', '-')}`
    return { raw: flag, origin: 'flag', source: name, base }
  }
  const variable = variableOf(key)
  if (env[variable]) return { raw: env[variable], origin: 'env', source: variable, base }
  if (table?.[key] !== undefined) return { raw: table[key], origin: 'file', source: file, base: dirname(file) }
  return undefined
}

function readToml(file: string, mustExist: boolean): Record<string, unknown> | undefined {
  let toml: string
  try {
    toml = readFileSync(file, 'utf8')
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT' && !mustExist) return undefined
    throw new AgentError('usage', `the configuration ${file} cannot be read: ${reasonOf(cause)}`, {
      cause,
      next: 'Give --config the path of a file that this user can read.',
    })
  }
  try {
    return parse(toml)
  } catch (cause) {
    const where = cause instanceof TomlError ? `${file}:${cause.line}:${cause.column}` : file
    const reason = reasonOf(cause).split('\n')[0]
    throw new AgentError('usage', `${where}: ${reason}`, { cause, next: 'Correct the line and try again.' })
  }
}

function unknownKeys(table: Record<string, unknown>, file: string): string[] {
  return Object.keys(table)
    .filter((key) => !KEYS.has(key))
    .map((key) => `${file}: unknown key ${key}; did you mean ${nearest(key, [...KEYS.keys()])}?`)
}

function unknownVariables(env: Environment): string[] {
  const known = [...[...KEYS.keys()].map(variableOf), ...OTHER_VARIABLES]
  return Object.keys(env)
    .filter((name) => name.startsWith('UNDERNET_') && !known.includes(name))
    .map((name) => `environment: unknown variable ${name}; did you mean ${nearest(name, known)}?`)
}

function variableOf(key: string): string {
  return `UNDERNET_${key.toUpperCase()}`
}

/** The host's name without its domain, as far as a node's name may have its characters. */
function defaultName(): string {
  const name = (hostname().split('.')[0] ?? '').replace(/[^0-9A-Za-z._-]/g, '-').slice(0, NAME_LENGTH_MAX)
  return NAME_PATTERN.test(name) ? name : 'node'
}
