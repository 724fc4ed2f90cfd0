// Asks through the C library (inet), or by Java's own resolver: the JNDI provider, whose sockets
// are IPv6 ones also for an IPv4 nameserver.
import java.net.InetAddress;
import java.util.Hashtable;
import javax.naming.directory.InitialDirContext;

class Resolve {
    public static void main(String[] args) throws Exception {
        if (args[0].equals("inet")) {
            for (InetAddress address : InetAddress.getAllByName(args[1])) {
                System.out.println(address);
            }
            return;
        }
        Hashtable<String, String> environment = new Hashtable<>();
        environment.put("java.naming.factory.initial", "com.sun.jndi.dns.DnsContextFactory");
        environment.put("java.naming.provider.url", "dns:");
        InitialDirContext context = new InitialDirContext(environment);
        System.out.println(context.getAttributes(args[1], new String[] {args[0]}));
    }
}
