import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import javax.tools.ToolProvider;

/**
 * A service that is slow to start, as large ones are: it generates classes, compiles and loads them, and calls each until the
 * JVM has compiled it, too. Then it listens, and leaves what the JVM makes of the node in a file.
 */
public final class Startup {
    private static final int CALLS = 20_000;

    public static void main(String[] arguments) throws Exception {
        int classes = Integer.parseInt(arguments[0]);
        Path ready = Path.of(arguments[1]);
        Path directory = Files.createTempDirectory("classes");
        List<String> sources = new ArrayList<>(List.of("-d", directory.toString(), "-proc:none"));
        for (int number = 0; number < classes; number++) {
            sources.add(write(directory, number).toString());
        }
        int status = ToolProvider.getSystemJavaCompiler().run(null, null, null, sources.toArray(String[]::new));
        if (status != 0) {
            throw new IllegalStateException("javac ended with " + status);
        }
        long sum = 0;
        try (URLClassLoader loader = new URLClassLoader(new URL[] {directory.toUri().toURL()})) {
            for (int number = 0; number < classes; number++) {
                var handler = loader.loadClass("Handler" + number).getDeclaredConstructor().newInstance();
                var work = (java.util.function.LongUnaryOperator) handler;
                for (int call = 0; call < CALLS; call++) {
                    sum = work.applyAsLong(sum + call);
                }
            }
        }
        try (ServerSocket socket = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
            int processors = Runtime.getRuntime().availableProcessors();
            Path draft = ready.resolveSibling("draft");
            Files.writeString(draft, processors + " " + socket.getLocalPort() + " " + sum + "\n");
            Files.move(draft, ready);
            socket.accept().close();
        }
    }

    private static Path write(Path directory, int number) throws IOException {
        String name = "Handler" + number;
        String text = "public final class " + name + " implements java.util.function.LongUnaryOperator {\n"
                + "    private final java.util.Map<Long, String> seen = new java.util.HashMap<>();\n"
                + "    public long applyAsLong(long value) {\n"
                + "        String text = Long.toString(value % 97, 36) + " + number + ";\n"
                + "        seen.merge(value % 97, text, (old, added) -> added);\n"
                + "        return value * 31 + seen.get(value % 97).hashCode();\n"
                + "    }\n}\n";
        return Files.writeString(directory.resolve(name + ".java"), text);
    }
}
