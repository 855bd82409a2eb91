/**
 * What the agent is compared with where it is an OCI registry: Debian's docker-registry on loopback, with a directory, and as few words in
 * its log as it has.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { freePort, until } from '../test/agents.ts'

const PLACES = (process.env.PATH ?? '').split(delimiter)
const START_MS_MAX = 20_000

export class DockerRegistry implements AsyncDisposable {
  readonly url: string
  readonly #child: ChildProcess
  readonly #directory: string

  private constructor(child: ChildProcess, url: string, directory: string) {
    this.#child = child
    this.url = url
    this.#directory = directory
  }

  /** undefined where it is not installed. */
  static async start(): Promise<DockerRegistry | undefined> {
    const program = PLACES.map((place) => join(place, 'docker-registry')).find(existsSync)
    if (program === undefined) return undefined
    const directory = mkdtempSync(join(tmpdir(), 'undernet-registry-'))
    const port = await freePort()
    const file = join(directory, 'config.yml')
    writeFileSync(file, configuration(join(directory, 'data'), port))
    const child = spawn(program, ['serve', file], { stdio: 'ignore' })
    const registry = new DockerRegistry(child, `http://127.0.0.1:${port}`, directory)
    const answers = () =>
      fetch(`${registry.url}/v2/`).then(
        ({ ok }) => ok,
        () => false,
      )
    await until(answers, { what: 'docker-registry answers', ms: START_MS_MAX })
    return registry
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const gone = once(this.#child, 'exit')
    if (this.#child.exitCode === null && this.#child.kill()) await gone
    rmSync(this.#directory, { recursive: true, force: true })
  }
}

function configuration(directory: string, port: number): string {
  return `
version: 0.1
log: { level: error, accesslog: { disabled: true } }
storage: { filesystem: { rootdirectory: ${directory} }, delete: { enabled: true } }
http: { addr: "127.0.0.1:${port}" }
`
}
