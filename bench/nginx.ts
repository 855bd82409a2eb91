/**
 * What the agent is compared with where it serves over HTTP: nginx with a directory, on loopback or on a host of a LAN, with the settings that Debian ships
 * (two workers at most, sendfile, no log); with TLS where that is asked for, by a certificate made for the occasion.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { freePort, until } from '../test/agents.ts'
import { answers, type LanHost } from './lan.ts'

/** Where Debian puts it is not on everybody's path. */
const PLACES = [...(process.env.PATH ?? '').split(delimiter), '/usr/sbin', '/usr/local/sbin']

export class Nginx implements AsyncDisposable {
  readonly url: string
  /** For curl's --cacert. */
  readonly certificate: string
  readonly #child: ChildProcess
  readonly #directory: string

  private constructor(child: ChildProcess, url: string, directory: string) {
    this.#child = child
    this.url = url
    this.certificate = join(directory, 'certificate.pem')
    this.#directory = directory
  }

  /** undefined where it is not installed. */
  static async serve(
    root: string,
    { tls = false, at }: { tls?: boolean; at?: LanHost } = {},
  ): Promise<Nginx | undefined> {
    const program = PLACES.map((place) => join(place, 'nginx')).find(existsSync)
    if (program === undefined) return undefined
    const directory = mkdtempSync(join(tmpdir(), 'undernet-nginx-'))
    const port = await freePort()
    const file = join(directory, 'nginx.conf')
    const address = at?.address ?? '127.0.0.1'
    writeFileSync(file, configuration(root, directory, `${address}:${port}`, tls))
    if (tls) makeCertificate(directory)
    const within = at === undefined ? [] : ['ip', 'netns', 'exec', at.namespace]
    const options = ['-p', directory, '-c', file, '-e', join(directory, 'error.log')]
    const [command = program, ...args] = [...within, program, ...options]
    const url = `${tls ? 'https' : 'http'}://${address}:${port}`
    const nginx = new Nginx(spawn(command, args, { stdio: 'inherit' }), url, directory)
    await until(() => answers(at, address, port), { what: 'nginx listens' })
    return nginx
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const gone = once(this.#child, 'exit')
    if (this.#child.exitCode === null && this.#child.kill()) await gone
    rmSync(this.#directory, { recursive: true, force: true })
  }
}

function configuration(root: string, directory: string, place: string, tls: boolean): string {
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']
  // As root, workers change to a user who may not read what is below a private temporary directory.
  const user = process.getuid?.() === 0 ? 'user root;' : ''
  return `
    daemon off; pid ${directory}/pid; worker_processes 2; ${user}
    events { worker_connections 512; }
    http {
      access_log off; keepalive_requests 1000000; sendfile on; tcp_nopush on; default_type application/octet-stream;
      ${temporary.map((name) => `${name}_temp_path ${directory}/${name};`).join(' ')}
      ${tls ? `ssl_certificate ${directory}/certificate.pem; ssl_certificate_key ${directory}/key.pem;` : ''}
      server { listen ${place}${tls ? ' ssl' : ''}; root ${root}; }
    }
  `
}

function makeCertificate(directory: string): void {
  const files = ['-keyout', join(directory, 'key.pem'), '-out', join(directory, 'certificate.pem')]
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2']
  const name = ['-subj', '/CN=127.0.0.1', '-addext', 'subjectAltName=IP:127.0.0.1']
  execFileSync('openssl', ['req', '-x509', ...key, ...name, ...files], { stdio: 'ignore' })
}
