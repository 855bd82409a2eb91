/**
 * Credentials for registries as podman, skopeo and docker keep them: the first auth.json that is there, read again whenever one is wanted, since people log in and
 * out while the agent runs. Helpers that programs ask for credentials are not run: the daemon has no session to ask in.
 *
 * https://github.com/containers/image/blob/main/docs/containers-auth.json.5.md
 */
import { readFile, stat } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'

/** A person is logged in to a handful of registries. */
const FILE_BYTES_MAX = 1024 * 1024

const authFile = z.object({
  auths: z
    .record(z.string(), z.object({ auth: z.string().optional(), identitytoken: z.string().optional() }))
    .optional(),
})

export type Credentials = { readonly user: string; readonly password: string }

/** Where one is looked for, the first that exists counts. `configured` is the only one when it is given. */
export function authFiles(configured: string | undefined, env: NodeJS.ProcessEnv = process.env): string[] {
  if (configured !== undefined) return [configured]
  const home = env.HOME ?? homedir()
  return [
    ...(env.REGISTRY_AUTH_FILE ? [env.REGISTRY_AUTH_FILE] : []),
    ...(env.XDG_RUNTIME_DIR ? [join(env.XDG_RUNTIME_DIR, 'containers', 'auth.json')] : []),
    join(env.XDG_CONFIG_HOME ?? join(home, '.config'), 'containers', 'auth.json'),
    join(env.DOCKER_CONFIG ?? join(home, '.docker'), 'config.json'),
  ]
}

export class RegistryAuth {
  readonly #files: readonly string[]
  readonly #log: Log

  constructor(files: readonly string[], log: Log) {
    this.#files = files
    this.#log = log
  }

  /** Those of the longest entry that the repository is in: `host/team` before `host`. Undefined when there are none. */
  async find(hosts: readonly string[], repository: string): Promise<Credentials | undefined> {
    for (const file of this.#files) {
      const auths = await this.#read(file)
      if (auths === undefined) continue
      const keys = hosts.flatMap((host) => prefixes(`${host}/${repository}`))
      for (const key of keys.sort((a, b) => b.length - a.length)) {
        const entry = auths.get(key)
        const [user, ...rest] = Buffer.from(entry ?? '', 'base64')
          .toString('utf8')
          .split(':')
        if (user && rest.length > 0) return { user, password: rest.join(':').replace(/\0+$/, '') }
      }
    }
    return undefined
  }

  async #read(file: string): Promise<Map<string, string> | undefined> {
    try {
      if ((await stat(file)).size > FILE_BYTES_MAX) throw new Error('it is too large')
      const { auths = {} } = authFile.parse(JSON.parse(await readFile(file, 'utf8')))
      return new Map(
        Object.entries(auths).flatMap(([key, { auth }]) => (auth === undefined ? [] : [[nameOf(key), auth]])),
      )
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT')
        // What is in it is not repeated: there are secrets.
        this.#log.warn(
          {
            file,
            reason:
              error instanceof z.ZodError ? 'not in the form of auth.json' : reasonOf(error).replace(/".*"/s, '...'),
          },
          'registry.auth-unread',
        )
      return undefined
    }
  }
}

/** Docker writes whole URLs: `https://host/v1/`. */
function nameOf(key: string): string {
  return key.replace(/^https?:\/\//, '').replace(/\/(?:v[12]\/?)?$/, '')
}

/** `host/a/b`, `host/a`, `host`. */
function prefixes(name: string): string[] {
  const parts = name.split('/')
  return parts.map((_, at) => parts.slice(0, parts.length - at).join('/'))
}
