// Threads that block in accept on one listener, and a hundred threads that connect to it; then a selector.
import java.io.*;
import java.net.*;
import java.nio.*;
import java.nio.channels.*;
import java.util.*;
import java.util.concurrent.*;

public class Echo {
    static void serve(ServerSocket listener) {
        try {
            while (true) {
                try (Socket socket = listener.accept()) {
                    socket.setTcpNoDelay(true);
                    byte[] all = socket.getInputStream().readAllBytes();
                    socket.getOutputStream().write(all);
                }
            }
        } catch (IOException closed) {
            // The listener was closed under a blocked accept: every thread must come back.
        }
    }

    static void client(int port, int size) throws Exception {
        try (Socket socket = new Socket()) {
            socket.connect(new InetSocketAddress("127.0.0.1", port), 20_000);
            socket.setSoTimeout(20_000);
            byte[] sent = new byte[size];
            Arrays.fill(sent, (byte) size);
            socket.getOutputStream().write(sent);
            socket.shutdownOutput();
            byte[] received = socket.getInputStream().readAllBytes();
            if (!Arrays.equals(sent, received)) throw new AssertionError(size + " sent, " + received.length + " came");
            if (socket.getPort() != port) throw new AssertionError("peer port " + socket.getPort());
        }
    }

    static void threads() throws Exception {
        ServerSocket listener = new ServerSocket(0, 128);
        List<Thread> acceptors = new ArrayList<>();
        for (int n = 0; n < 8; n++) {
            Thread thread = new Thread(() -> serve(listener));
            thread.start();
            acceptors.add(thread);
        }
        ExecutorService clients = Executors.newFixedThreadPool(100);
        List<Future<?>> ends = new ArrayList<>();
        for (int n = 0; n < 400; n++) {
            int size = 1 + n * 100;
            ends.add(clients.submit(() -> { client(listener.getLocalPort(), size); return null; }));
        }
        for (Future<?> end : ends) end.get(60, TimeUnit.SECONDS);
        clients.shutdown();
        listener.close();
        for (Thread acceptor : acceptors) {
            acceptor.join(20_000);
            if (acceptor.isAlive()) throw new AssertionError("an accept outlived its listener");
        }
    }

    static void selector() throws Exception {
        Selector selector = Selector.open();
        ServerSocketChannel listener = ServerSocketChannel.open();
        listener.bind(new InetSocketAddress("127.0.0.1", 0));
        listener.configureBlocking(false);
        listener.register(selector, SelectionKey.OP_ACCEPT);
        SocketChannel client = SocketChannel.open();
        client.configureBlocking(false);
        boolean connected = client.connect(listener.getLocalAddress());
        if (!connected) client.register(selector, SelectionKey.OP_CONNECT);
        SocketChannel served = null;
        long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(20);
        while ((served == null || !connected) && System.nanoTime() < end) {
            selector.select(100);
            for (SelectionKey key : selector.selectedKeys()) {
                if (key.isAcceptable()) served = listener.accept();
                if (key.isConnectable()) {
                    connected = client.finishConnect();
                    key.cancel();
                }
            }
            selector.selectedKeys().clear();
        }
        if (!connected || served == null) throw new AssertionError("connected " + connected + ", served " + served);
        served.write(ByteBuffer.wrap("baa".getBytes()));
        selector.selectNow();
        client.configureBlocking(true);
        ByteBuffer heard = ByteBuffer.allocate(3);
        while (heard.hasRemaining() && client.read(heard) > 0) { }
        if (!new String(heard.array()).equals("baa")) throw new AssertionError("heard " + heard);
    }

    public static void main(String[] arguments) throws Exception {
        threads();
        selector();
        System.out.println("good");
    }
}
