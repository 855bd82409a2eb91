/**
 * Hosts and LANs on this machine, wired as a test likes: each host a network namespace, each LAN a bridge in one more. What is plugged in can be
 * pulled, and put into another LAN. Needs root and iproute2.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'

export class Wires implements Disposable {
  /** Names of interfaces have fifteen characters at most; those of namespaces are seen by everybody. */
  readonly #prefix = `w${process.pid}x${Math.floor(Math.random() * 1e4)}`
  readonly #made: string[] = []
  readonly #programs: ChildProcess[] = []
  readonly #switches: string
  /** Ports by host and device. */
  readonly #ports = new Map<string, string>()

  constructor() {
    this.#switches = this.host('sw')
  }

  /** A new host, with nothing but loopback. */
  host(name: string): string {
    const namespace = `${this.#prefix}${name}`
    this.ip('netns', 'add', namespace)
    this.#made.push(namespace)
    // An address can be used at once: nobody else has it.
    this.run(namespace, 'sysctl', '-qw', 'net.ipv6.conf.default.accept_dad=0', 'net.ipv6.conf.all.accept_dad=0')
    this.ip('-n', namespace, 'link', 'set', 'lo', 'up')
    return namespace
  }

  lan(name: string): string {
    this.ip('-n', this.#switches, 'link', 'add', name, 'type', 'bridge')
    this.ip('-n', this.#switches, 'link', 'set', name, 'up')
    return name
  }

  /** Gives a host a cable into a LAN, and addresses there. */
  plug(host: string, lan: string, device: string, ...addresses: string[]): void {
    const port = `p${this.#ports.size}`
    this.#ports.set(`${host} ${device}`, port)
    this.ip('-n', host, 'link', 'add', device, 'type', 'veth', 'peer', 'name', port, 'netns', this.#switches)
    this.ip('-n', this.#switches, 'link', 'set', port, 'master', lan, 'up')
    this.ip('-n', host, 'link', 'set', device, 'up')
    this.#address(host, device, addresses)
  }

  /** Pulls the cable out of its LAN and puts it into another one. */
  move(host: string, device: string, lan: string, ...addresses: string[]): void {
    const port = this.#ports.get(`${host} ${device}`)
    if (port === undefined) throw new Error(`${host} has no ${device}`)
    this.ip('-n', this.#switches, 'link', 'set', port, 'master', lan)
    this.ip('-n', host, 'addr', 'flush', 'dev', device, 'scope', 'global')
    this.#address(host, device, addresses)
  }

  route(host: string, to: string, via: string): void {
    this.ip('-n', host, ...(via.includes(':') ? ['-6'] : []), 'route', 'replace', to, 'via', via)
  }

  /** Lets a host pass on what is not for it. */
  forwards(host: string): void {
    this.run(host, 'sysctl', '-qw', 'net.ipv4.ip_forward=1', 'net.ipv6.conf.all.forwarding=1')
  }

  /** A web server on a host, on its loopback, that answers with a text. */
  async serve(host: string, port: number, text: string): Promise<void> {
    const program = `require('node:http').createServer((q, r) => r.end(process.argv[1])).listen(${port}, '127.0.0.1', () => console.log('up'))`
    const server = spawn('ip', ['netns', 'exec', host, process.execPath, '-e', program, text], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    this.#programs.push(server)
    await once(server.stdout, 'data')
  }

  run(host: string, ...command: string[]): string {
    return execFileSync('ip', ['netns', 'exec', host, ...command]).toString()
  }

  ip(...args: string[]): void {
    execFileSync('ip', args)
  }

  [Symbol.dispose](): void {
    for (const program of this.#programs.splice(0)) program.kill('SIGKILL')
    for (const namespace of this.#made.splice(0)) this.ip('netns', 'del', namespace)
  }

  #address(host: string, device: string, addresses: readonly string[]): void {
    for (const address of addresses) this.ip('-n', host, 'addr', 'add', address, 'dev', device)
  }
}
