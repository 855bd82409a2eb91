/**
 * The agent's configuration: what each key is worth after flags, environment, file and defaults, in this order of precedence. Every
 * value remembers where it came from. All mistakes are reported at once, an unknown key with the nearest known one.
 */
import { readFileSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { parse, TomlError } from 'smol-toml'
import { AgentError, reasonOf } from '../error.ts'
import { type Config, KEYS } from './keys.ts'
import { nearest } from './nearest.ts'
import { configFile, type Environment } from './paths.ts'
import { type Kind, path } from './values.ts'

type ConfigOrigin = 'default' | 'file' | 'env' | 'flag'
type ConfigEntry = {
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
type ConfigFlags = Readonly<Record<string, string | boolean | string[] | undefined>>
export type ConfigSources = {
  flags?: ConfigFlags
  env?: Environment
  /** `--config`: this file, which then has to exist. */
  file?: string | undefined
}

/** Variables that are not keys. */
const OTHER_VARIABLES = ['UNDERNET_CONFIG']

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
      // A state that cannot be read is a mistake already; what follows from it is then of no account.
      raw: byDefault(env, (values.state as string | undefined) ?? '/'),
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
